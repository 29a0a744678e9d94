/** On Load Mask Video: the numbers of the mask, under the host's own preview of it; of the file until a run gives it. */
import { el, facts, notes } from "./dom.js";
import { percent } from "./format.js";
import { addPanel, after, isLinked } from "./widget.js";
import { say } from "./words.js";

export const MASK = "HetCacheLoadMaskVideo";
const CLIP = "images"; // the input that gives the mask its length
const PAUSE = 300; // milliseconds without a change before the server is asked
const ASKED = ["file", "path", "channel", "threshold", "invert", "grow", "feather", "frame_rate", "skip_frames", "frame_cap"];

/**
 * @param {(settings: object, signal: AbortSignal) => Promise<object>} ask the server for the numbers of a file; rejects
 *   where it cannot
 * @returns {{isOf(mask), show(mask), look(), fail(words)}}
 */
export function maskPanel(node, ask) {
  const panel = addPanel(node, "hetcache_mask", say("Mask numbers"), 138, 300);
  const watched = new WeakSet();
  let timer = 0;
  let asked = 0;
  let going = null;

  /** Values of the widgets; null where one comes from another node and is not known yet. */
  const settings = () => {
    const mine = (node.widgets ?? []).filter((widget) => ASKED.includes(widget.name));
    return mine.some((widget) => isLinked(node, widget)) ? null : Object.fromEntries(mine.map((widget) => [widget.name, widget.value]));
  };

  const watch = () => {
    for (const widget of node.widgets ?? []) {
      if (watched.has(widget) || !ASKED.includes(widget.name)) continue;
      watched.add(widget);
      after(widget, "callback", () => view.look());
    }
  };

  const stop = () => {
    clearTimeout(timer);
    asked++;
    going?.abort(); // the server need not decode what has changed meanwhile
  };

  const view = {
    /** Whether a run's mask was made with the settings as they are now. */
    isOf({ settings: made }) {
      const now = settings();
      return !made || !now || Object.entries(made).every(([name, value]) => (now[name] ?? value) === value);
    },
    /** The mask that a run gave. */
    show(mask) {
      stop();
      draw("known", mask);
    },
    /** Words for what went wrong. */
    fail(error) {
      stop();
      watch(); // the look that was stopped would have
      draw("error", { error });
    },
    /** What the chosen file has, with the settings as they are. */
    look() {
      stop();
      timer = setTimeout(async () => {
        watch();
        const values = settings();
        if (!values) return draw("blank");
        const turn = ++asked;
        panel.element.dataset.looking = "true";
        const answer = await ask(values, (going = new AbortController()).signal).catch((error) => ({ error: error.message }));
        if (turn !== asked) return;
        delete panel.element.dataset.looking;
        draw(answer.error ? "error" : answer.frames ? "file" : "blank", answer);
      }, PAUSE);
    },
  };

  function draw(state, mask = {}) {
    panel.element.dataset.state = state;
    panel.element.dataset.frames = mask.frames ?? "";
    const known = state === "known" || state === "file";
    panel.show(
      known && numbers(mask, node.inputs?.some((input) => input.name === CLIP && input.link != null)),
      notes([mask.error ? say(mask.error) : known && advice(mask)], "warn"),
      state === "file" && el("p", { class: "het-state" },
        say("As the file has it. With a clip connected, the mask gets its size and length when the workflow runs.")),
      !known && el("p", { class: "het-blank" }, say("Choose, upload or drop a mask: its frames, size and masked share "
        + "show here. Once the workflow runs, a preview plays, over the clip if one is connected.")),
    );
  }

  panel.onRemove(stop);
  after(node, "onConfigure", view.look);
  after(node, "onConnectionsChange", view.look);
  draw("blank");
  view.look();
  return view;
}

function numbers(mask, hasClip) {
  const rate = { frames: mask.frames, fps: Number(mask.fps.toFixed(2)) };
  const still = hasClip ? say("1, for every frame") : say("1; connect the clip to use it for every frame");
  return facts([
    [say("masked"), percent(mask.share), say("share of all pixels that are edited")],
    [say("frames"), mask.frames === 1 ? still : say("{frames} at {fps} fps", rate)],
    [say("size"), `${mask.width}×${mask.height}`],
    [say("unmasked in a row"),
      mask.longest_unmasked ? say("{count} frames", { count: mask.longest_unmasked }) : say("none"),
      say("most frames in a row that are kept whole")],
  ]);
}

function advice({ share, longest_unmasked: longest, frames }) {
  if (share === 0) {
    return say("The mask is empty: nothing would be edited. Invert it, lower the threshold, or pick another channel.");
  }
  if (share > 0.9) {
    return say("Nearly everything is masked, so there is little to save. Invert it if white and black are swapped.");
  }
  if (longest > frames / 2) {
    return say("More than half of the clip in a row has no mask; cutting the clip there is faster still.");
  }
  return "";
}
