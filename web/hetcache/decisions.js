/** The kinds of evaluation: letter, name, and how a bar of each stands out without colour (height and texture). */
export const DECISIONS = {
  F: { name: "full", height: 1.0, says: "every token computed" },
  B: { name: "blocks", height: 0.75, says: "some blocks computed, the others reused" },
  G: { name: "guidance", height: 0.65, says: "computed without the negative prompt, whose share is reused" },
  P: { name: "partial", height: 0.55, says: "the masked region and a little context computed" },
  H: { name: "half", height: 0.35, says: "the masked region and a little context, without the negative prompt" },
  R: { name: "reuse", height: 0.18, says: "nothing computed, a forecast" },
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
  return counts(letters).map(([l, n]) => `${n} ${decision(l).name}`).join(", ") || "none";
}
