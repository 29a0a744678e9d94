/** The parts of a run that the live panel and Cache Stats both show. */
import { inWords } from "./decisions.js";
import { el, facts } from "./dom.js";
import { bytes, percent, seconds, times } from "./format.js";
import { legend, Timeline } from "./timeline.js";
import { say } from "./words.js";

/** Speed, large, against what was asked for and what was predicted. */
export function headline(run, word) {
  const aims = [
    run.target != null && say("target {speed}", { speed: times(run.target, 1) }),
    run.predicted == null ? say("decided online") : say("predicted {speed}", { speed: times(run.predicted) }),
  ].filter(Boolean);
  const kind = run.speed == null ? "" : run.estimated ? say("estimated") : word;
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
  const count = run.ended && !done ? "" // it was left to the host
    : done < run.total ? say("{done} of {total}", { done, total: run.total }) : say("{done} evaluations", { done });
  return el("p", { class: "het-state", role: "status" },
    [word, count].filter(Boolean).join(", ") + (done ? `: ${inWords(run.decisions)}` : ""));
}

export function numbers(run) {
  const held = run.ended ? run.peak_held_bytes : run.held_bytes;
  return facts([
    [say("time saved"), seconds(run.decisions ? run.saved_seconds : null), say("against computing every step in full")],
    [say("memory held"), say("{held} of {budget}", { held: bytes(held), budget: bytes(run.budget_bytes) }),
      run.ended ? say("most of it, and your budget") : say("now, and your budget")],
    [say("mask"), percent(run.mask_fraction), say("share of the clip that is edited, in tokens")],
  ]);
}
