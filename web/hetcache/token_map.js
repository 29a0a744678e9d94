/** The token map of a run over the frames of its clip, with a slider through the frames. */
import { el } from "./dom.js";
import { say } from "./words.js";

/** What the numbers of a map mean; the patterns tell them apart without colour. */
const USES = [
  { get name() { return say("forecast only"); }, tint: [0, 0, 0, 0.62], pattern: "none" },
  { get name() { return say("context remembered"); }, tint: [120, 120, 120, 0.3], pattern: "dash" },
  { get name() { return say("context computed"); }, tint: [0, 158, 115, 0.55], pattern: "dot" },
  { get name() { return say("margin"); }, tint: [86, 180, 233, 0.6], pattern: "line" },
  { get name() { return say("generative"); }, tint: [230, 159, 0, 0.6], pattern: "cross" },
];
const KEY = 14; // pixels of a sample in the legend

/**
 * @param {{shape: number[], data: string, references: number}} map deflated and in base64, one byte a token
 * @param {string | null} address of the sheet of frames, one below the other
 * @param {number} count frames on the sheet
 */
export function tokenMap(map, address, count) {
  const [frames, height, width] = map.shape;
  const side = Math.max(8, Math.min(48, Math.floor(640 / width))); // pixels of the drawing a token takes
  const canvas = el("canvas", { width: width * side, height: height * side, role: "img" });
  const slider = el("input", { type: "range", min: 0, max: frames - 1, step: 1, "aria-label": say("latent frame"),
    value: Math.floor((frames + map.references) / 2) });
  const caption = el("output", {});
  const legend = el("div", { class: "het-legend" }, USES.map((use) => {
    const key = el("canvas", { class: "het-key", width: KEY, height: KEY, "aria-hidden": "true" });
    paint(key.getContext("2d"), 0, 0, KEY + 1, use);
    return el("span", {}, key, use.name);
  }));
  let tokens = null;
  let sheet = null;

  const draw = () => {
    const frame = Number(slider.value);
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#c8c8c8";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    const shown = frame - map.references;
    if (sheet && shown >= 0) {
      const tall = sheet.naturalHeight / count;
      pen.drawImage(sheet, 0, Math.min(shown, count - 1) * tall, sheet.naturalWidth, tall, 0, 0, canvas.width, canvas.height);
    }
    const totals = USES.map(() => 0);
    for (let i = 0; tokens && i < height * width; i++) {
      const use = tokens[frame * height * width + i];
      totals[use]++;
      paint(pen, (i % width) * side, Math.floor(i / width) * side, side, USES[use]);
    }
    const words = USES.map((use, i) => totals[i] && say("{count} {kind}", { count: totals[i], kind: use.name }))
      .filter(Boolean).join(", ");
    const kind = shown < 0 ? say("reference image") : say("latent frame {frame} of {frames}", { frame: frame + 1, frames });
    caption.textContent = kind;
    canvas.setAttribute("aria-label", say("Token map, {frame}: {kinds}", { frame: kind, kinds: words }));
    canvas.title = words;
  };

  slider.addEventListener("input", draw);
  inflate(map.data).then((bytes) => { tokens = bytes; draw(); }, () => { caption.textContent = say("the map could not be read"); });
  if (address) {
    const image = new Image();
    image.addEventListener("load", () => { sheet = image; draw(); });
    image.src = address;
  }
  draw();
  return el("figure", { class: "het-map" }, canvas, el("figcaption", {}, slider, caption), legend);
}

function paint(pen, x, y, side, { tint: [r, g, b, a], pattern }) {
  pen.fillStyle = `rgba(${r},${g},${b},${a})`;
  pen.fillRect(x, y, side - 1, side - 1);
  pen.strokeStyle = "rgba(255,255,255,0.75)";
  pen.lineWidth = Math.max(1, side / 24);
  const [near, far] = [0.3 * side, 0.65 * side];
  pen.beginPath();
  if (pattern === "dot") pen.arc(x + side / 2, y + side / 2, 0.15 * side, 0, 7);
  if (pattern === "dash") { pen.moveTo(x + near, y + side / 2); pen.lineTo(x + far, y + side / 2); }
  if (pattern === "line" || pattern === "cross") { pen.moveTo(x + near, y + far); pen.lineTo(x + far, y + near); }
  if (pattern === "cross") { pen.moveTo(x + near, y + near); pen.lineTo(x + far, y + far); }
  pen.stroke();
}

async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
