/** On Cache Stats: the finished runs, with every evaluation, the prediction against the measurement, and the map. */
import { decision } from "./decisions.js";
import { el, notes } from "./dom.js";
import { bytes, percent, seconds, times, UNKNOWN } from "./format.js";
import { bars, headline, numbers, state } from "./run_view.js";
import { tokenMap } from "./token_map.js";
import { addPanel } from "./widget.js";
import { say } from "./words.js";

export const STATS = "HetCacheStats";

/**
 * @param {(file) => string} addressOf where the host serves a file
 * @returns {{show(runs), plain(text), blank()}}
 */
export function statsPanel(node, addressOf) {
  const panel = addPanel(node, "hetcache_stats", say("HetCache statistics"), 90, 380);

  const opened = { comparison: false, map: true, evaluations: false }; // stays so while runs are compared
  const section = (key, title, content) => el("details",
    { open: opened[key], ontoggle: (event) => { opened[key] = event.target.open; } }, el("summary", {}, title), content);

  const choose = (runs, index) => {
    const run = { ...runs[index].summary, ended: true };
    panel.element.dataset.state = "done";
    panel.element.dataset.speed = run.speed;
    panel.show(
      runs.length > 1 && el("label", { class: "het-runs" }, say("sampling run"), " ",
        el("select", { onchange: (event) => pick(runs, Number(event.target.value)) },
          runs.map((_, i) => el("option", { value: i, selected: i === index }, i + 1)))),
      headline(run, say("measured")),
      notes([runs[index].kept, run.note, ...run.warnings].map((text) => text && say(text)), "warn"),
      bars(run),
      state(run, ""),
      numbers(run),
      section("comparison", say("Prediction against measurement"), comparison(runs[index])),
      runs[index].map && section("map", say("Token map"),
        tokenMap(runs[index].map, picture(runs[index].frames), runs[index].frames?.count ?? 1)),
      section("evaluations", say("Every evaluation"), evaluations(runs[index].report)),
      copyButton(() => JSON.stringify({ untouched: "", runs: runs.map((r) => r.report) }, null, 1)),
    );
    panel.resize(560);
  };
  const pick = (runs, index) => {
    choose(runs, index);
    panel.element.querySelector("select").focus(); // for the keyboard: the one it was on is gone
  };
  const picture = (file) => (file ? addressOf(file) : null);

  const view = {
    show: (runs) => choose(runs, runs.length - 1),
    /** Nothing was measured; the report says why. */
    plain(text) {
      panel.element.dataset.state = "plain";
      panel.show(notes([say(text)], "warn") ?? "");
    },
    blank() {
      panel.element.dataset.state = "blank";
      panel.show(el("p", { class: "het-blank" }, say("After sampling: measured speed, every step, and what was computed where.")));
    },
  };
  view.blank();
  return view;
}

function table(head, rows) {
  return el("div", { class: "het-scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, cell)))))));
}

function comparison({ report, costs }) {
  const relative = (part) => (part && report.seconds_full ? percent(part / report.seconds_full) : UNKNOWN);
  return table(["", say("predicted"), say("measured")], [
    [say("speed"), times(report.predicted_speed), times(report.speed)],
    [say("a partial step costs"), percent(costs.partial), relative(report.seconds_partial)],
    [say("a reuse step costs"), percent(costs.reuse), relative(report.seconds_reuse)],
    [say("context memory"), bytes(report.planned_context_bytes), bytes(report.peak_context_bytes)],
    [say("steps as planned"), report.planned ? String(report.planned.length) : UNKNOWN,
      report.planned ? String([...report.decisions].filter((d, i) => d === report.planned[i]).length) : UNKNOWN],
  ]);
}

function evaluations(report) {
  const head = [say("step"), say("kind"), say("why"), say("sigma"), say("tokens"), say("time"), say("memory")];
  return table(head, report.evaluations.map((e) => [
    String(e.index + 1), el("span", {}, el("i", { class: `het-swatch het-${e.decision}`, "aria-hidden": "true" }),
      `${e.decision} ${decision(e.decision).name}`),
    say(e.reason), e.sigma.toFixed(3), e.tokens.toLocaleString("en"), seconds(e.seconds), bytes(e.context_bytes),
  ]));
}

function copyButton(text) {
  const button = el("button", { type: "button", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = say("Copied");
    } catch {
      button.textContent = say("The browser forbids copying; use the json output");
    }
    setTimeout(() => { button.textContent = say("Copy JSON"); }, 2500);
  } }, say("Copy JSON"));
  return button;
}
