/** On HetCache Patch Model: the run, while it samples. */
import { el, notes } from "./dom.js";
import { headline, numbers, state } from "./run_view.js";
import { legend, Timeline } from "./timeline.js";
import { addPanel } from "./widget.js";
import { say } from "./words.js";

export const PATCH_MODEL = "HetCachePatchModel";

const STOPPED = {
  execution_interrupted: () => say("stopped"),
  execution_error: () => say("ended by an error"),
  lost: () => say("ended while the connection was lost"),
};

/** @returns {{show(run), again(), untouched(reason), blank()}} */
export function patchPanel(node) {
  const panel = addPanel(node, "hetcache_live", say("HetCache progress"), 232);
  let last = null;
  let timeline = null; // of the run on show; it is kept while the run goes on, the rest is small

  const why = (run) => {
    const known = run.planned || run.ended; // what is decided online is not known beforehand
    const nothing = known && !/[^F]/.test(run.planned + run.decisions) && run.note;
    return nothing ? say("Nothing is being saved: {reason}.", { reason: say(run.note) }) : say(run.note);
  };

  const view = {
    show(run) {
      const stopped = !run.ended && STOPPED[run.stopped]?.();
      if (last?.run !== run.run || !timeline?.update(run)) timeline = new Timeline(run);
      last = run;
      const which = run.number > 1 ? say("sampling run {number}", run) : "";
      const word = run.ended ? say("done") : stopped || (run.decisions ? say("sampling") : say("starting"));
      panel.element.dataset.state = stopped ? "stopped" : run.ended ? "done" : "sampling";
      panel.element.dataset.run = run.run;
      panel.show(
        headline(run, run.ended ? say("measured") : say("so far")),
        notes([why(run), ...run.warnings.map((text) => say(text))], "warn"),
        timeline.element,
        legend(run.decisions + run.planned),
        state(run, [which, word].filter(Boolean).join(", ")),
        numbers(run),
      );
    },
    /** What was shown may have been stopped since. */
    again() {
      if (last) view.show(last);
    },
    untouched(reason) {
      last = null;
      panel.element.dataset.state = "untouched";
      panel.show(el("p", {}, say("HetCache leaves this model as it is.")), notes([say(reason)], "warn"));
    },
    blank() {
      last = null;
      panel.element.dataset.state = "blank";
      panel.show(el("p", { class: "het-blank" }, say("Nothing sampled yet. Once the workflow runs, every step shows here: "
        + "what was computed, the speed so far, and the reason where nothing is saved.")));
    },
  };
  view.blank();
  return view;
}
