/** On Cache Policy Settings: what the planner would do with these settings, for the clip and mask sampled last. */
import { el, facts, notes } from "./dom.js";
import { bytes, percent, times } from "./format.js";
import { inWords } from "./decisions.js";
import { showRelevant } from "./relevant.js";
import { legend, Timeline } from "./timeline.js";
import { addPanel, after, isLinked } from "./widget.js";
import { say } from "./words.js";

export const POLICY = "HetCachePolicySettings";
const PAUSE = 150; // milliseconds without a change before the server is asked; a slider moves faster than that

/**
 * @param {(settings: object, signal: AbortSignal) => Promise<object>} ask the server for the plan of these settings;
 *   rejects where it cannot
 * @returns {{refresh()}}
 */
export function policyPanel(node, ask) {
  const panel = addPanel(node, "hetcache_plan", say("HetCache plan"), 216);
  const watched = new WeakSet();
  let timer = 0;
  let asked = 0;
  let going = null;

  /** Values of the widgets; null where one comes from another node and is not known yet. */
  const settings = () => {
    const mine = (node.widgets ?? []).filter((widget) => widget.type !== "hetcache" && widget.value !== undefined);
    return mine.some((widget) => isLinked(node, widget)) ? null
      : Object.fromEntries(mine.map((widget) => [widget.name, widget.value]));
  };

  const watch = () => {
    for (const widget of node.widgets ?? []) { // some come and go with the method
      if (watched.has(widget) || widget.type === "hetcache") continue;
      watched.add(widget);
      after(widget, "callback", refresh);
    }
  };

  function stop() {
    clearTimeout(timer);
    asked++;
    going?.abort(); // the server need not answer what has changed meanwhile
  }

  function refresh() {
    stop();
    showRelevant(node);
    timer = setTimeout(async () => {
      watch();
      const turn = ++asked;
      const values = settings();
      if (!values) return show({ linked: true });
      const answer = await ask(values, (going = new AbortController()).signal).catch((error) => ({ failed: error.message }));
      if (turn === asked) show(answer);
    }, PAUSE);
  }

  function show(plan) {
    panel.element.dataset.state = plan.linked ? "linked" : plan.failed ? "failed" : plan.error ? "error" : plan.known ? "known" : "unknown";
    panel.element.dataset.predicted = plan.predicted ?? "";
    if (plan.failed) return panel.show(notes([say("The plan cannot be shown: {reason}.", { reason: plan.failed })], "warn"));
    if (plan.linked) {
      return panel.show(el("p", { class: "het-blank" }, say("A setting comes from another node. What is planned shows on "
        + "HetCache Patch Model once the workflow runs.")));
    }
    if (plan.error) return panel.show(notes([say(plan.error)], "warn"));
    if (!plan.known) {
      return panel.show(el("p", { class: "het-blank" }, say("Nothing has run yet. After the first run this shows, for its clip and "
        + "mask, what these settings would do: speed, steps of each kind, memory.")));
    }
    const online = plan.predicted == null;
    const full = !online && !/[^F]/.test(plan.planned);
    const held = { held: bytes(plan.held_bytes), budget: bytes(plan.budget_bytes) };
    const reason = say(plan.note);
    const planned = { decisions: "", planned: plan.planned, total: plan.total, live: false };
    return panel.show(
      el("header", { class: "het-head" }, el("strong", { class: "het-speed" }, online ? say("online") : times(plan.predicted)),
        el("span", {}, online ? say("decided while sampling, by the thresholds") : say("predicted"), el("br"),
          el("small", {}, clip(plan)))),
      notes([full && reason ? say("Everything would be computed in full: {reason}.", { reason }) : reason], "warn"),
      !online && [new Timeline(planned).element, legend(plan.planned)],
      facts([[say("steps"), online ? String(plan.total) : inWords(plan.planned)],
        [say("memory held"), say("{held} of {budget}", held), plan.tier]]),
    );
  }

  panel.onRemove(stop);
  after(node, "onConfigure", refresh);
  after(node, "onConnectionsChange", refresh);
  refresh();
  return { refresh };
}

function clip({ clip: { latent_frames: frames, width, height }, mask_fraction: share, total }) {
  return say("{frames} frames of {size}, mask {share}, {total} steps",
    { frames: 4 * (frames - 1) + 1, size: `${width}×${height}`, share: percent(share), total });
}
