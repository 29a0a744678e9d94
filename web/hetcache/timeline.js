/** The timeline of a run: one bar an evaluation, told apart by height, texture, letter and colour. */
import { decision, inWords } from "./decisions.js";
import { el, svg } from "./dom.js";
import { seconds } from "./format.js";

const HEIGHT = 44; // of the bars, in units of the drawing, which is 1000 wide
const LETTERS_UP_TO = 40; // evaluations; beyond, letters would touch

/**
 * @param {{decisions: string, planned: string, total: number, seconds?: number[]}} run what was done, and what is planned
 * @returns {HTMLElement} with a text alternative
 */
export function timeline({ decisions, planned, total, seconds: took = [] }) {
  const count = Math.max(total || 0, decisions.length, planned.length, 1);
  const step = 1000 / count;
  const gap = Math.min(6, step * 0.15);
  const bars = Array.from({ length: count }, (_, i) => {
    const done = i < decisions.length;
    const letter = decisions[i] ?? planned[i] ?? "";
    const kind = decision(letter);
    const height = letter ? Math.max(kind.height * HEIGHT, 4) : 4;
    const state = done ? "done" : i === decisions.length ? "next" : "planned";
    const classes = `het-bar het-${letter || "unknown"} het-${state}`;
    const text = `${i + 1}: ${letter ? kind.name : "not decided yet"}` +
      (done && took[i] != null ? `, ${seconds(took[i])}` : done ? "" : ", planned");
    return svg("rect", { class: classes, x: i * step + gap / 2, y: HEIGHT - height, width: step - gap, height },
      svg("title", {}, text));
  });
  const drawing = svg("svg", { viewBox: `0 0 1000 ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, bars);
  const row = Array.from({ length: count }, (_, i) =>
    el("span", { class: i < decisions.length ? "" : "het-planned" }, decisions[i] ?? planned[i] ?? "·"));
  const words = describe(decisions, planned, count);
  return el("div", { class: "het-timeline", role: "img", "aria-label": words, title: words }, drawing,
    count <= LETTERS_UP_TO && el("div", { class: "het-letters", "aria-hidden": "true" }, row));
}

/** The text alternative. */
export function describe(decisions, planned, count) {
  const done = `${decisions.length} of ${count} evaluations done: ${inWords(decisions)}`;
  const ahead = planned.slice(decisions.length);
  const coming = ahead ? `; planned: ${inWords(ahead)}` : "";
  return `${done}${coming}. In order: ${decisions}${ahead && ` then ${ahead}`}`;
}

/** What the bars mean, for the letters that occur. */
export function legend(letters) {
  const kinds = [...new Set(letters)].sort((a, b) => decision(b).height - decision(a).height);
  return el("div", { class: "het-legend" }, kinds.map((letter) =>
    el("span", { title: decision(letter).says }, el("i", { class: `het-swatch het-${letter}`, "aria-hidden": "true" }),
      `${letter} ${decision(letter).name}`)));
}
