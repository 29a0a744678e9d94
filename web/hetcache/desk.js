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
const MOST_PROMPTS = 64;
const unfinished = (run) => run?.run && !run.ended && !run.stopped;

export class Desk {
  /** @param app the host's application @param api its connection to the server */
  constructor(app, api) {
    this.app = app;
    this.api = api;
    this.panels = new WeakMap(); // node -> its panel; nodes that are removed take theirs along
    this.workflows = new Map(); // prompt -> the workflow it was queued from, of those that told
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
    this.api.addEventListener("execution_success", ({ detail }) => {
      this.stopped(detail?.prompt_id, "lost"); // its last word came before this, or never
      this.each(POLICY, (panel) => panel.refresh());
    });
    this.api.addEventListener("reconnected", () => this.settle());
    this.api.addEventListener("executed", ({ detail }) => this.executed(detail));
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
    this.whenPlaced(node, (key) => this.showStats(panel, recall(key)));
  }

  showStats(panel, shown) {
    if (shown?.runs) panel.show(shown.runs);
    else if (shown?.text) panel.plain(shown.text);
  }

  /** What a node gave. The host tells nodes only of the workflow on screen, and tells them of any; this knows whose. */
  executed({ prompt_id: prompt, display_node: shown, node, output } = {}) {
    if (!output?.hetcache && !output?.hetcache_unmeasured) return;
    const here = this.root?.id;
    const workflow = this.workflows.get(prompt) ?? here;
    const id = shown ?? node;
    const stats = { runs: output.hetcache, text: output.hetcache_unmeasured?.[0] };
    keep(keyOf(workflow, id), stats);
    const target = workflow === here && nodeOf(this.root, id);
    if (target?.comfyClass === STATS) this.showStats(this.panels.get(target), stats);
  }

  furnishMask(node) {
    const panel = maskPanel(node, (...asked) => this.look(...asked));
    takeStills(node, this.api, panel.fail);
    showStills(node);
    this.panels.set(node, panel);
    after(node, "onExecuted", (output) => {
      const mask = output?.hetcache_mask?.[0];
      if (!mask) return;
      const key = this.keyFor(node);
      if (key) keep(key, { mask });
      if (panel.isOf(mask)) panel.show(mask);
    });
    this.whenPlaced(node, (key) => {
      const last = recall(key);
      if (last?.mask && panel.isOf(last.mask)) panel.show(last.mask);
    });
  }

  /** What the server would plan with the settings of a node; rejects with words for a person. */
  async plan(node, settings, signal) {
    const body = JSON.stringify({ settings, workflow: this.root.id, nodes: readers(this.root, node, PATCH_MODEL) });
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
      if (!key) return;
      then(key);
      if (unfinished(recall(key))) this.settle();
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
    if (run.prompt && run.workflow) this.workflows.set(run.prompt, run.workflow);
    if (this.workflows.size > MOST_PROMPTS) this.workflows.delete(this.workflows.keys().next().value);
    keep(keyOf(run.workflow ?? here, run.node), run);
    if (run.workflow && here && run.workflow !== here) return; // another tab's workflow; it looks when it is opened
    const node = nodeOf(this.root, run.node);
    if (node?.comfyClass === PATCH_MODEL) this.panels.get(node)?.show(run);
    if (!run.decisions) this.each(POLICY, (panel) => panel.refresh()); // a clip and a mask are known from now on
  }

  /** The host says, to every page, that a prompt ended before its runs did. */
  stopped(prompt, how) {
    const its = (run) => unfinished(run) && (run.prompt ?? prompt) === prompt;
    for (const run of kept().filter(its)) run.stopped = how;
    this.each(PATCH_MODEL, (panel) => panel.again());
  }

  /** Runs that the server has no more in its queue have ended, where this page was not there to hear it. */
  async settle() {
    try {
      const queue = await (await this.api.fetchApi("/queue")).json();
      const queued = [...queue.queue_running, ...queue.queue_pending].map(([, prompt]) => prompt);
      const lost = new Set(kept().filter(unfinished).map((run) => run.prompt).filter((prompt) => prompt && !queued.includes(prompt)));
      for (const prompt of lost) this.stopped(prompt, "lost");
    } catch {
      // no server, no news: it will be asked when the connection is back
    }
  }

  each(kind, act) {
    for (const [, node] of everyNode(this.root)) {
      const panel = node.comfyClass === kind && this.panels.get(node);
      if (panel) act(panel);
    }
  }
}
