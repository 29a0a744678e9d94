/** Numbers as a person reads them. Every function takes null for a number that is not known. */
export const UNKNOWN = "–";

export const times = (x, digits = 2) => (x == null ? UNKNOWN : `${x.toFixed(digits)}×`);

export const percent = (x) => {
  if (x == null) return UNKNOWN;
  return x > 0 && x < 0.1 ? `${(100 * x).toFixed(1)}%` : `${Math.round(100 * x)}%`;
};

export function seconds(x) {
  if (x == null) return UNKNOWN;
  if (x >= 3600) return `${Math.floor(x / 3600)} h ${Math.round((x % 3600) / 60)} min`;
  if (x >= 100) return `${Math.floor(x / 60)} min ${Math.round(x % 60)} s`;
  if (x >= 10) return `${x.toFixed(0)} s`;
  return x >= 0.1 || x === 0 ? `${x.toFixed(1)} s` : `${(1000 * x).toFixed(x < 0.01 ? 1 : 0)} ms`;
}

export function bytes(x) {
  if (x == null) return UNKNOWN;
  const mb = x / 2 ** 20;
  return mb >= 1024 ? `${(mb / 1024).toFixed(1)} GB` : `${mb.toFixed(mb < 10 ? 1 : 0)} MB`;
}
