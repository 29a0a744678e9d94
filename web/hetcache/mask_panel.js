/** On Load Mask Video: the numbers of the mask that came out, under the host's own preview of it. */
import { el, facts, notes } from "./dom.js";
import { percent } from "./format.js";
import { addPanel } from "./widget.js";

export const MASK = "HetCacheLoadMaskVideo";

/** @returns {{show(mask), blank()}} */
export function maskPanel(node) {
  const panel = addPanel(node, "hetcache_mask", "Mask numbers", 138, 300);
  const view = {
    show(mask) {
      panel.element.dataset.state = "known";
      panel.element.dataset.frames = mask.frames;
      panel.show(
        facts([
          ["masked", percent(mask.share), "share of all pixels that are edited"],
          ["frames", `${mask.frames} at ${Number(mask.fps.toFixed(2))} fps`],
          ["size", `${mask.width}×${mask.height}`],
          ["unmasked in a row", mask.longest_unmasked ? `${mask.longest_unmasked} frames` : "none",
            "most frames in a row that are kept whole"],
        ]),
        notes([advice(mask)], "warn"),
      );
    },
    blank() {
      panel.element.dataset.state = "blank";
      panel.show(el("p", { class: "het-blank" }, "Choose, upload or drop a mask. Once the workflow runs, its frames, size ",
        "and masked share show here, and a preview over the clip if one is connected."));
    },
  };
  view.blank();
  return view;
}

function advice({ share, longest_unmasked: longest, frames }) {
  if (share === 0) return "The mask is empty: nothing would be edited. Invert it, lower the threshold, or pick another channel.";
  if (share > 0.9) return "Nearly everything is masked, so there is little to save. Invert it if white and black are swapped.";
  if (longest > frames / 2) return "More than half of the clip in a row has no mask; cutting the clip there is faster still.";
  return "";
}
