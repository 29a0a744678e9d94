/**
 * The panels' words in the language of the editor. English is what the code says; locales/<language>/main.json has the
 * others under "hetcache", by the English words. Reasons of the server come as English words too, and are found alike.
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
  const find = (words) => (known && Object.hasOwn(known, words) ? known[words] : words);
  const whole = find(text);
  const words = whole === text ? text.split("; ").map(find).join("; ") : whole; // reasons may come several at a time
  return words.replace(/\{(\w+)\}/g, (place, name) => (Object.hasOwn(values, name) ? values[name] : place));
}
