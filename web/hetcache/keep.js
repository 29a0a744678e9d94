/** What a panel showed last, kept for a reload of the page; gone when the tab is closed. */
const PREFIX = "hetcache:";
const MOST = 24; // entries; a browser grants a few megabytes and each takes some ten kilobytes

export const keyOf = (workflow, id) => `${PREFIX}${workflow ?? ""}/${id}`;

export function keep(key, value) {
  try {
    const kept = Object.keys(sessionStorage).filter((name) => name.startsWith(PREFIX) && name !== key);
    if (kept.length >= MOST) kept.slice(0, kept.length - MOST + 1).forEach((name) => sessionStorage.removeItem(name));
    sessionStorage.setItem(key, JSON.stringify(value));
  } catch {
    // full or forbidden: the panel starts empty after a reload, nothing else is lost
  }
}

export function recall(key) {
  try {
    return JSON.parse(sessionStorage.getItem(key));
  } catch {
    return null;
  }
}
