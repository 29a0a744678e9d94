/** On Load Mask Video: the numbers of the mask that came out, under the host's own preview of it. */
import { el, facts, notes } from "./dom.js";
import { percent } from "./format.js";
import { addPanel } from "./widget.js";
import { say } from "./words.js";

export const MASK = "HetCacheLoadMaskVideo";

/** @returns {{show(mask), blank()}} */
export function maskPanel(node) {
  const panel = addPanel(node, "hetcache_mask", say("Mask numbers"), 138, 300);
  const view = {
    show(mask) {
      panel.element.dataset.state = "known";
      panel.element.dataset.frames = mask.frames;
      panel.show(
        facts([
          [say("masked"), percent(mask.share), say("share of all pixels that are edited")],
          [say("frames"), say("{frames} at {fps} fps", { frames: mask.frames, fps: Number(mask.fps.toFixed(2)) })],
          [say("size"), `${mask.width}×${mask.height}`],
          [say("unmasked in a row"),
            mask.longest_unmasked ? say("{count} frames", { count: mask.longest_unmasked }) : say("none"),
            say("most frames in a row that are kept whole")],
        ]),
        notes([advice(mask)], "warn"),
      );
    },
    blank() {
      panel.element.dataset.state = "blank";
      panel.show(el("p", { class: "het-blank" }, say("Choose, upload or drop a mask. Once the workflow runs, its frames, size and "
        + "masked share show here, and a preview over the clip if one is connected.")));
    },
  };
  view.blank();
  return view;
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
