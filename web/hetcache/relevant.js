/** On Cache Policy Settings: only what the chosen preset or method looks at is shown. */
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

const PRESET = ["preset", "memory_budget_mb"]; // what counts beside a preset

/** Hide the settings that make no difference; a text that a method may refuse stays to be seen. */
export function showRelevant(node) {
  const widgets = node.widgets ?? [];
  const chosen = (name) => widgets.find((widget) => widget.name === name)?.value;
  const preset = chosen("preset") !== "custom";
  const unused = UNUSED[chosen("method")] ?? [];
  for (const widget of widgets.filter(({ type }) => type !== "hetcache")) {
    const written = typeof widget.value === "string" && !["", "auto"].includes(widget.value.trim());
    const hidden = preset ? !PRESET.includes(widget.name) : ALL.has(widget.name) && !written && unused.includes(widget.name);
    if (Boolean(widget.hidden) === hidden) continue;
    widget.hidden = hidden; // the classic canvas looks here, Nodes 2.0 at the options
    widget.options.hidden = hidden;
  }
}
