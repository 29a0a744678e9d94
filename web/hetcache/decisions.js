/** The kinds of evaluation: letter, name, and how a bar of each stands out without colour (height and texture). */
import { say } from "./words.js";

export const DECISIONS = {
  F: { height: 1.0, get name() { return say("full"); }, get says() { return say("every token computed"); } },
  B: { height: 0.75, get name() { return say("blocks"); },
    get says() { return say("some blocks computed, the others reused"); } },
  G: { height: 0.65, get name() { return say("guidance"); },
    get says() { return say("computed without the negative prompt, whose share is reused"); } },
  P: { height: 0.55, get name() { return say("partial"); },
    get says() { return say("the masked region and a little context computed"); } },
  H: { height: 0.35, get name() { return say("half"); },
    get says() { return say("the masked region and a little context, without the negative prompt"); } },
  R: { height: 0.18, get name() { return say("reuse"); }, get says() { return say("nothing computed, a forecast"); } },
};

/** A kind this page does not know yet is still shown, under its letter. */
export function decision(letter) {
  return DECISIONS[letter] ?? { name: letter, height: 0.3, says: "" };
}

/** @returns {[string, number][]} letters that occur, dearest first, each with how often. */
export function counts(letters) {
  const known = [...Object.keys(DECISIONS), ...letters].filter((l, i, all) => all.indexOf(l) === i);
  return known.map((l) => [l, letters.split(l).length - 1]).filter(([, n]) => n > 0);
}

/** "10 full, 8 partial, 12 reuse" */
export function inWords(letters) {
  const each = counts(letters).map(([l, n]) => say("{count} {kind}", { count: n, kind: decision(l).name }));
  return each.join(", ") || say("none");
}
