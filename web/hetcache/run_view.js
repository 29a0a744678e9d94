/** The parts of a run that the live panel and Cache Stats both show. */
import { inWords } from "./decisions.js";
import { el, facts } from "./dom.js";
import { bytes, percent, seconds, times } from "./format.js";
import { legend, Timeline } from "./timeline.js";

/** Speed, large, against what was asked for and what was predicted. */
export function headline(run, word) {
  const aims = [
    run.target != null && `target ${times(run.target, 1)}`,
    run.predicted == null ? "decided online" : `predicted ${times(run.predicted)}`,
  ].filter(Boolean);
  const kind = run.speed == null ? "" : run.estimated ? "estimated" : word;
  return el("header", { class: "het-head" },
    el("strong", { class: "het-speed" }, times(run.speed)),
    el("span", {}, kind, kind && el("br"), el("small", {}, aims.join(" · "))));
}

export function bars(run) {
  return [new Timeline(run).element, legend(run.decisions + run.planned)];
}

/** "sampling, 6 of 16: 2 full, 4 reuse" */
export function state(run, word) {
  const done = run.decisions.length;
  const count = done < run.total ? `${done} of ${run.total}` : `${done} evaluations`;
  return el("p", { class: "het-state", role: "status" }, `${word}${word && ", "}${count}${done ? `: ${inWords(run.decisions)}` : ""}`);
}

export function numbers(run) {
  const held = run.ended ? run.peak_held_bytes : run.held_bytes;
  return facts([
    ["time saved", seconds(run.decisions ? run.saved_seconds : null), "against computing every step in full"],
    ["memory held", `${bytes(held)} of ${bytes(run.budget_bytes)}`, `${run.ended ? "most of it" : "now"}, and your budget`],
    ["mask", percent(run.mask_fraction), "share of the clip that is edited, in tokens"],
  ]);
}
