/** What panels showed last: for workflows that are opened again, and, beyond this page, for a reload of the tab. */
const PREFIX = "hetcache:";
const MOST = 24; // entries; a browser grants a few megabytes and each takes some ten kilobytes
const latest = new Map(); // newest last

export const keyOf = (workflow, id) => `${PREFIX}${workflow ?? ""}/${id}`;

export function keep(key, value) {
  latest.delete(key);
  latest.set(key, value);
  if (latest.size > MOST) latest.delete(latest.keys().next().value);
}

export function recall(key) {
  if (latest.has(key)) return latest.get(key);
  try {
    const stored = JSON.parse(sessionStorage.getItem(key));
    if (stored) keep(key, stored);
    return stored;
  } catch {
    return null;
  }
}

/** Everything this page was told, to be changed in place. */
export const kept = () => [...latest.values()];

/** Write everything down, when the page is left: too slow to be done with every event. */
export function store() {
  try {
    const older = Object.keys(sessionStorage).filter((name) => name.startsWith(PREFIX) && !latest.has(name));
    for (const name of older.slice(0, Math.max(older.length + latest.size - MOST, 0))) sessionStorage.removeItem(name);
    for (const [key, value] of latest) sessionStorage.setItem(key, JSON.stringify(value));
  } catch {
    // full or forbidden: panels start empty after a reload, nothing else is lost
  }
}
