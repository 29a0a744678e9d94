/** A few lines over the DOM, so that panels read as what they show. */
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** Facts as a list of terms: [["saved", "3.2 s"], ...]. Entries without a value are left out. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value != null && value !== "");
  return el("dl", { class: "het-facts" }, shown.map(([term, value, title]) =>
    el("div", { title }, el("dt", {}, term), el("dd", {}, value))));
}

/** Things to know, one a line; an empty list gives nothing. */
export function notes(texts, kind = "note") {
  const unique = [...new Set(texts.filter(Boolean))];
  if (!unique.length) return null;
  return el("ul", { class: `het-notes het-${kind}` }, unique.map((text) => el("li", {}, text)));
}
