/** On HetCache Patch Model: the run, while it samples. */
import { el, notes } from "./dom.js";
import { headline, numbers, state } from "./run_view.js";
import { legend, Timeline } from "./timeline.js";
import { addPanel } from "./widget.js";

export const PATCH_MODEL = "HetCachePatchModel";

/** @returns {{show(run), stopped(why), untouched(reason), blank()}} */
export function patchPanel(node) {
  const panel = addPanel(node, "hetcache_live", "HetCache progress", 232);
  let last = null;
  let timeline = null; // of the run on show; it is kept while the run goes on, the rest is small

  const why = (run) => {
    const nothing = !/[^F]/.test(run.planned + run.decisions) && run.note;
    return nothing ? `Nothing is being saved: ${run.note}.` : run.note;
  };

  const view = {
    show(run, stopped = "") {
      if (last?.run !== run.run || !timeline?.update(run)) timeline = new Timeline(run);
      last = run;
      const which = run.number > 1 ? `sampling run ${run.number}: ` : "";
      const word = run.ended ? "done" : stopped || (run.decisions ? "sampling" : "starting");
      panel.element.dataset.state = stopped ? "stopped" : run.ended ? "done" : "sampling";
      panel.element.dataset.run = run.run;
      panel.show(
        headline(run, run.ended ? "measured" : "so far"),
        notes([why(run), ...run.warnings], "warn"),
        timeline.element,
        legend(run.decisions + run.planned),
        state(run, `${which}${word}`),
        numbers(run),
      );
    },
    /** The host says that the prompt ended before the run did. */
    stopped(word) {
      if (last && !last.ended) view.show(last, word);
    },
    untouched(reason) {
      last = null;
      panel.element.dataset.state = "untouched";
      panel.show(el("p", {}, "HetCache leaves this model as it is."), notes([reason], "warn"));
    },
    blank() {
      last = null;
      panel.element.dataset.state = "blank";
      panel.show(el("p", { class: "het-blank" }, "Nothing sampled yet. Once the workflow runs, every step shows here: ",
        "what was computed, the speed so far, and the reason where nothing is saved."));
    },
  };
  view.blank();
  return view;
}
