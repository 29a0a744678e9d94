/** On Cache Policy Settings: only what the chosen method looks at is shown. */
const PARTIALS = ["refresh", "margin_space", "margin_time", "context_share", "partials"];
const PLANS = ["memory_offload", "schedule", "replan"];
const UNUSED = { // by method; what all look at, or what switches them off, is not here
  plan: [],
  hetcache: [...PLANS, "memory_budget_mb"],
  mixcache: [...PARTIALS, ...PLANS],
  profilingdit: [...PARTIALS, ...PLANS, "max_reuse", "profile"],
  off: [...PARTIALS, ...PLANS, "max_reuse", "profile", "warmup", "cooldown", "mask_threshold", "max_mask_fraction", "memory_budget_mb"],
};
const ALL = new Set(Object.values(UNUSED).flat());

/** Hide the settings that the node's method does not look at; a text that may be refused stays to be seen. */
export function showRelevant(node) {
  const widgets = node.widgets ?? [];
  const chosen = (name) => widgets.find((widget) => widget.name === name)?.value;
  const method = chosen("preset") === "custom" ? chosen("method") : "plan"; // which all presets are
  for (const widget of widgets.filter(({ name }) => ALL.has(name))) {
    const written = typeof widget.value === "string" && !["", "auto"].includes(widget.value.trim());
    const hidden = !written && (UNUSED[method] ?? []).includes(widget.name);
    if (Boolean(widget.hidden) === hidden) continue;
    widget.hidden = hidden; // the classic canvas looks here, Nodes 2.0 at the options
    widget.options.hidden = hidden;
  }
}
