/**
 * The panels' words in the language of the editor. English is what the code says; locales/<language>/main.json has the
 * others under "hetcache", by the English words. Reasons of the server come as English words too, and are found alike;
 * of those with values in them the key has {1}, {2} and so on in their places.
 */
const LOCALE = "Comfy.Locale";
let catalogues = {};
let language = () => "en";

/** Fetch what the host has gathered of every pack. Where it has nothing, all stays English. */
export async function learn(app, api) {
  language = () => app.extensionManager?.setting?.get(LOCALE) ?? "en";
  try {
    const packs = await (await api.fetchApi("/i18n")).json();
    catalogues = Object.fromEntries(Object.entries(packs).map(([code, words]) => [code, words.hetcache ?? {}]));
  } catch {
    catalogues = {};
  }
}

/**
 * @param {string} text in English, "{name}" where a value goes
 * @param {object} [values] by name
 * @returns {string} the same in the editor's language
 */
export function say(text = "", values = {}) {
  const known = catalogues[language()];
  const words = known ? translated(text, known) : text;
  return words.replace(/\{(\w+)\}/g, (place, name) => (Object.hasOwn(values, name) ? values[name] : place));
}

/** Reasons may come several at a time, and hold semicolons themselves: the longest that is known goes first. */
function translated(text, known) {
  const parts = text.split("; ");
  const found = [];
  for (let from = 0, to; from < parts.length; from = to) {
    let words;
    for (to = parts.length; to > from && words === undefined; to--) words = find(parts.slice(from, to).join("; "), known);
    to = words === undefined ? from + 1 : to + 1;
    found.push(words ?? parts[from]);
  }
  return found.join("; ");
}

/** A text's words as they stand or by its form, what is in it too; undefined where it has none. */
function find(text, known) {
  if (Object.hasOwn(known, text)) return known[text];
  for (const [form, words] of forms(known)) {
    const values = form.exec(text);
    if (values) return words.replace(/\{(\d+)\}/g, (_, number) => translated(values[number], known));
  }
  return undefined;
}

const compiled = new WeakMap(); // of each catalogue, the keys that stand for a form of words

function forms(known) {
  if (!compiled.has(known)) {
    const keys = Object.keys(known).filter((key) => /\{\d+\}/.test(key));
    const literal = (part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    compiled.set(known, keys.map((key) => [new RegExp(`^${key.split(/\{\d+\}/).map(literal).join("(.*?)")}$`, "s"), known[key]]));
  }
  return compiled.get(known);
}
