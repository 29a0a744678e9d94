/** A panel inside a node: a DOM widget that stands in the classic canvas and in Nodes 2.0 alike. */
import { el } from "./dom.js";

const AROUND = 24; // pixels of a widget that are not its element's inside: the host's margin, the border
const TALLEST = 480; // pixels that a panel grows to by itself; beyond, it scrolls

/**
 * A panel grows with what it shows, and in the classic canvas does not shrink again: what jumps while it is read is
 * worse than a gap.
 *
 * @param node the node it belongs to
 * @param {string} name of the widget, unique within the node
 * @param {string} label what it is, for screen readers
 * @param {number} minHeight in pixels
 * @param {number} [minWidth] of the node, in pixels
 * @returns {{element: HTMLElement, show: (...children) => void, onRemove: (f: () => void) => void, resize}}
 */
export function addPanel(node, name, label, minHeight, minWidth = 320) {
  const element = el("section", { class: "het-panel", "aria-label": label, tabindex: 0, "data-hetcache": name,
    "data-capture-wheel": "true" }); // Nodes 2.0 scrolls what has it, once it is clicked
  element.addEventListener("wheel", zoomed, { passive: false });
  let height = minHeight;
  const widget = node.addDOMWidget(name, "hetcache", element, {
    serialize: false, hideOnZoom: false, getMinHeight: () => height,
  });
  widget.serialize = false;
  widget.serializeValue = () => undefined;
  if (node.size) { // a node just made is too small for it; Nodes 2.0 fits the height by itself
    const least = globalThis.LiteGraph?.vueNodesMode ? 0 : node.computeSize?.()[1] ?? 0;
    node.setSize?.([Math.max(node.size[0], minWidth), Math.max(node.size[1], least)]);
  }
  const leave = [];
  after(node, "onRemoved", () => leave.splice(0).forEach((f) => f()));

  const resize = (pixels) => {
    if (pixels === height) return;
    height = pixels;
    element.style.minHeight = `${pixels - 12}px`;
    const size = node.computeSize?.();
    if (size && node.size) node.setSize([Math.max(node.size[0], minWidth), Math.max(node.size[1], size[1])]);
    node.graph?.setDirtyCanvas?.(true, true);
  };

  const grow = () => {
    if (element.scrollHeight <= element.clientHeight + 1) return; // so too where it is not on screen
    resize(Math.max(height, Math.min(element.scrollHeight + AROUND, TALLEST)));
  };

  return {
    element,
    show: (...children) => {
      element.replaceChildren(...children.flat().filter((c) => c != null && c !== false));
      requestAnimationFrame(grow);
    },
    onRemove: (f) => leave.push(f),
    resize,
  };
}

/** In the classic canvas the wheel zooms over a panel too, but for one that has something to scroll. */
function zoomed(event) {
  const panel = event.currentTarget;
  if (globalThis.LiteGraph?.vueNodesMode || (!event.ctrlKey && panel.scrollHeight > panel.clientHeight + 1)) return;
  event.preventDefault();
  globalThis.app?.canvas?.processMouseWheel?.(event);
}

/** Whether a widget's value comes from another node, and is not known before the workflow runs. */
export const isLinked = (node, widget) => node.inputs?.find((input) => input.name === widget.name)?.link != null;

/** Run `then` after a node's own handler of that name, keeping what it returns. */
export function after(node, name, then) {
  const before = node[name];
  node[name] = function (...args) {
    const result = before?.apply(this, args);
    then(...args);
    return result;
  };
}
