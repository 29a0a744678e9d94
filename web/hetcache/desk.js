/** Where news and panels meet: makes the panel of each of our nodes and brings every message to the one it is for. */
import { keep, kept, keyOf, recall, store } from "./keep.js";
import { everyNode, nodeOf, readers } from "./lookup.js";
import { MASK, maskPanel } from "./mask_panel.js";
import { PATCH_MODEL, patchPanel } from "./patch_panel.js";
import { POLICY, policyPanel } from "./policy_panel.js";
import { STATS, statsPanel } from "./stats_panel.js";
import { showStills, takeStills } from "./still.js";
import { after } from "./widget.js";
import { say } from "./words.js";

const PROGRESS = "hetcache.progress";
const PLAN = "/hetcache/plan";
const LOOK = "/hetcache/mask";

export class Desk {
  /** @param app the host's application @param api its connection to the server */
  constructor(app, api) {
    this.app = app;
    this.api = api;
    this.panels = new WeakMap(); // node -> its panel; nodes that are removed take theirs along
  }

  get root() {
    return this.app.graph; // of the whole workflow, also while a subgraph is open
  }

  listen() {
    this.api.addEventListener(PROGRESS, ({ detail }) => this.progress(detail));
    window.addEventListener("pagehide", store);
    for (const end of ["execution_interrupted", "execution_error"]) {
      this.api.addEventListener(end, ({ detail }) => this.stopped(detail?.prompt_id, end));
    }
    this.api.addEventListener("execution_success", () => this.each(POLICY, (panel) => panel.refresh()));
  }

  /** Put a panel on a node that wants one. */
  furnish(node) {
    const makers = {
      [PATCH_MODEL]: () => this.furnishPatch(node),
      [STATS]: () => this.furnishStats(node),
      [POLICY]: () => this.panels.set(node, policyPanel(node, (...asked) => this.plan(node, ...asked))),
      [MASK]: () => this.furnishMask(node),
    };
    makers[node.comfyClass]?.();
  }

  furnishPatch(node) {
    const panel = patchPanel(node);
    this.panels.set(node, panel);
    after(node, "onExecuted", (output) => {
      const reason = output?.hetcache_untouched?.[0];
      if (!reason) return;
      panel.untouched(reason);
      const key = this.keyFor(node);
      if (key) keep(key, { untouched: reason });
    });
    this.whenPlaced(node, (key) => {
      const last = recall(key);
      if (last?.untouched) panel.untouched(last.untouched);
      else if (last) panel.show(last);
    });
  }

  furnishStats(node) {
    const panel = statsPanel(node, (file) => this.api.apiURL(`/view?${new URLSearchParams(file)}`));
    node.hideOutputImages = true; // the host's preview would show the same again, in Nodes 2.0
    node.onDrawBackground = () => {}; // and in the classic canvas
    this.panels.set(node, panel);
    after(node, "onExecuted", (output) => {
      if (!output) return;
      if (output.hetcache) panel.show(output.hetcache);
      else if (output.text) panel.plain(output.text[0]);
      const key = this.keyFor(node);
      if (key) keep(key, { runs: output.hetcache, text: output.text?.[0] });
    });
    this.whenPlaced(node, (key) => {
      const shown = recall(key);
      if (shown?.runs) panel.show(shown.runs);
      else if (shown?.text) panel.plain(shown.text);
    });
  }

  furnishMask(node) {
    const panel = maskPanel(node, (...asked) => this.look(...asked));
    takeStills(node, this.api, panel.fail);
    showStills(node);
    this.panels.set(node, panel);
    after(node, "onExecuted", (output) => {
      if (!output?.hetcache_mask) return;
      panel.show(output.hetcache_mask[0]);
      const key = this.keyFor(node);
      if (key) keep(key, { mask: output.hetcache_mask[0], settings: panel.settings() });
    });
    this.whenPlaced(node, (key) => { // what a run gave with other settings says nothing of these
      const last = recall(key);
      if (last?.mask && JSON.stringify(last.settings) === JSON.stringify(panel.settings())) panel.show(last.mask);
    });
  }

  /** What the server would plan with the settings of a node; rejects with words for a person. */
  async plan(node, settings, signal) {
    const body = JSON.stringify({ settings, nodes: readers(this.root, node, PATCH_MODEL) });
    const headers = { "Content-Type": "application/json" };
    let answer;
    try {
      answer = await this.api.fetchApi(PLAN, { method: "POST", headers, body, signal });
    } catch {
      throw new Error(say("the server does not answer"));
    }
    if (!answer.ok) {
      throw new Error(say("the server has no planner ({status}); restart it with HetCache installed",
        { status: answer.status }));
    }
    return answer.json();
  }

  /** What the file of a Load Mask Video has; rejects with words for a person. */
  async look(settings, signal) {
    const query = new URLSearchParams(settings);
    const answer = await this.api.fetchApi(`${LOOK}?${query}`, { signal }).catch(() => ({ status: "–" }));
    if (!answer.ok) {
      throw new Error(say("The server cannot look at this mask ({status}). Its numbers show once the workflow runs.",
        { status: answer.status }));
    }
    return answer.json();
  }

  /** A node gets its id and its graph after it is created; only then it is known what it showed before. */
  whenPlaced(node, then) {
    after(node, "onConfigure", () => queueMicrotask(() => {
      const key = this.keyFor(node);
      if (key) then(key);
    }));
  }

  keyFor(node) {
    for (const [id, other] of everyNode(this.root)) {
      if (other === node) return keyOf(this.root.id, id);
    }
    return null;
  }

  progress(run) {
    const here = this.root?.id;
    keep(keyOf(run.workflow ?? here, run.node), run);
    if (run.workflow && here && run.workflow !== here) return; // another tab's workflow; it looks when it is opened
    const node = nodeOf(this.root, run.node);
    if (node?.comfyClass === PATCH_MODEL) this.panels.get(node)?.show(run);
    if (!run.decisions) this.each(POLICY, (panel) => panel.refresh()); // a clip and a mask are known from now on
  }

  /** The host says, to every page, that a prompt ended before its runs did. */
  stopped(prompt, how) {
    const its = (run) => run.run && !run.ended && (run.prompt ?? prompt) === prompt;
    for (const run of kept().filter(its)) run.stopped = how;
    this.each(PATCH_MODEL, (panel) => panel.again());
  }

  each(kind, act) {
    for (const [, node] of everyNode(this.root)) {
      const panel = node.comfyClass === kind && this.panels.get(node);
      if (panel) act(panel);
    }
  }
}
