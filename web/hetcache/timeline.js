/** The timeline of a run: one bar an evaluation, told apart by height, texture, letter and colour. */
import { decision, inWords } from "./decisions.js";
import { el, svg } from "./dom.js";
import { seconds } from "./format.js";
import { say } from "./words.js";

const HEIGHT = 44; // of the bars, in units of the drawing, which is 1000 wide
const LETTERS_UP_TO = 40; // evaluations; beyond, letters would touch

/**
 * @typedef {{decisions: string, planned: string, total: number, seconds?: number[], live?: boolean}} Run
 *   what was done, and what is planned; with `live: false` nothing is under way
 */

/** How many evaluations a run has or is going to have. */
const length = ({ decisions, planned, total }) => Math.max(total || 0, decisions.length, planned.length, 1);

/** A timeline with a text alternative; `update` follows a run and touches only what has changed. */
export class Timeline {
  /** @param {Run} run */
  constructor(run) {
    this.count = length(run);
    this.shown = []; // of each bar, what it shows
    this.titles = Array.from({ length: this.count }, () => svg("title"));
    this.bars = this.titles.map((title) => svg("rect", {}, title));
    this.letters = this.bars.map(() => el("span"));
    const drawing = { viewBox: `0 0 1000 ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" };
    this.element = el("div", { class: "het-timeline", role: "img" }, svg("svg", drawing, this.bars),
      this.count <= LETTERS_UP_TO && el("div", { class: "het-letters", "aria-hidden": "true" }, this.letters));
    this.update(run);
  }

  /** @param {Run} run of as many evaluations as before @returns {boolean} whether it is */
  update(run) {
    if (length(run) !== this.count) return false;
    for (let i = 0; i < this.count; i++) this.bar(i, run);
    const words = describe(run.decisions, run.planned, this.count);
    this.element.setAttribute("aria-label", words);
    this.element.title = words;
    return true;
  }

  bar(i, { decisions, planned, seconds: took = [], live = true }) {
    const letter = decisions[i] ?? planned[i] ?? "";
    const state = i < decisions.length ? "done" : live && i === decisions.length ? "next" : "planned";
    const shows = `${letter}${state}${took[i]}`;
    if (this.shown[i] === shows) return;
    this.shown[i] = shows;
    const kind = decision(letter);
    const step = 1000 / this.count;
    const gap = Math.min(6, step * 0.15);
    const height = letter ? Math.max(kind.height * HEIGHT, 4) : 4;
    const place = { class: `het-bar het-${letter || "unknown"} het-${state}`, x: i * step + gap / 2, y: HEIGHT - height,
      width: step - gap, height };
    for (const [name, value] of Object.entries(place)) this.bars[i].setAttribute(name, value);
    const ending = state !== "done" ? say("planned") : took[i] != null ? seconds(took[i]) : "";
    const words = letter ? [kind.name, ending].filter(Boolean).join(", ") : say("not decided yet");
    this.titles[i].textContent = `${i + 1}: ${words}`;
    this.letters[i].textContent = letter || "·";
    this.letters[i].className = state === "done" ? "" : "het-planned";
  }
}

/** The text alternative. */
export function describe(decisions, planned, count) {
  const ahead = planned.slice(decisions.length);
  const values = { done: decisions.length, count, kinds: inWords(decisions), decisions, ahead, coming: inWords(ahead) };
  if (!ahead) return say("{done} of {count} evaluations done: {kinds}. In order: {decisions}", values);
  return say("{done} of {count} evaluations done: {kinds}; planned: {coming}. In order: {decisions} then {ahead}", values);
}

/** What the bars mean, for the letters that occur. */
export function legend(letters) {
  const kinds = [...new Set(letters)].sort((a, b) => decision(b).height - decision(a).height);
  return el("div", { class: "het-legend" }, kinds.map((letter) =>
    el("span", { title: decision(letter).says }, el("i", { class: `het-swatch het-${letter}`, "aria-hidden": "true" }),
      `${letter} ${decision(letter).name}`)));
}
