/** Numbers as a person reads them. Every function takes null for a number that is not known. */
import { say } from "./words.js";

export const UNKNOWN = "–";

export const times = (x, digits = 2) => (x == null ? UNKNOWN : `${x.toFixed(digits)}×`);

export const percent = (x) => {
  if (x == null) return UNKNOWN;
  return x > 0 && x < 0.1 ? `${(100 * x).toFixed(1)}%` : `${Math.round(100 * x)}%`;
};

export function seconds(x) {
  if (x == null) return UNKNOWN;
  const whole = Math.round(x);
  const minutes = Math.round(x / 60);
  if (whole >= 3600) return say("{h} h {min} min", { h: Math.floor(minutes / 60), min: minutes % 60 });
  if (whole >= 100) return say("{min} min {s} s", { min: Math.floor(whole / 60), s: whole % 60 });
  if (x >= 10) return say("{s} s", { s: x.toFixed(0) });
  if (x >= 0.1 || x === 0) return say("{s} s", { s: x.toFixed(1) });
  return say("{ms} ms", { ms: (1000 * x).toFixed(x < 0.01 ? 1 : 0) });
}

export function bytes(x) {
  if (x == null) return UNKNOWN;
  const mb = x / 2 ** 20;
  return mb >= 1024 ? `${(mb / 1024).toFixed(1)} GB` : `${mb.toFixed(mb < 10 ? 1 : 0)} MB`;
}
