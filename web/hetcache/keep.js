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
    return JSON.parse(sessionStorage.getItem(key));
  } catch {
    return null;
  }
}

/** Write everything down, when the page is left: too slow to be done with every event. */
export function store() {
  try {
    for (const name of Object.keys(sessionStorage)) {
      if (name.startsWith(PREFIX) && !latest.has(name) && latest.size >= MOST) sessionStorage.removeItem(name);
    }
    for (const [key, value] of latest) sessionStorage.setItem(key, JSON.stringify(value));
  } catch {
    // full or forbidden: panels start empty after a reload, nothing else is lost
  }
}
