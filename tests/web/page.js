// What the tests need inside the page: nodes and panels by name, every event of ours, and the contrast of a panel.
() => {
  const walk = (graph) => graph.nodes.flatMap((node) => [node, ...(node.subgraph ? walk(node.subgraph) : [])]);
  const channel = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = (rgb) => rgb.reduce((sum, v, i) => sum + channel(v / 255) * [0.2126, 0.7152, 0.0722][i], 0);
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };

  const HET = {
    events: [],
    /** Every node, those in subgraphs included. */
    all: () => walk(app.graph),
    /** The n-th node of a kind. */
    node: (type, n = 0) => HET.all().filter((node) => node.type === type)[n],
    widget: (type, name, n = 0) => HET.node(type, n)?.widgets?.find((widget) => widget.name === name),
    /** The element of the n-th panel of a name. */
    panel(name, n = 0) {
      const found = HET.all().map((node) => node.widgets?.find((widget) => widget.name === name)).filter(Boolean);
      return found[n]?.element;
    },
    set(type, name, value, n = 0) {
      const widget = HET.widget(type, name, n);
      widget.value = value;
      widget.callback?.(value);
      app.canvas.setDirty(true, true);
    },
    /** An event as the server would send it. */
    tell: (detail) => app.api.dispatchEvent(new CustomEvent("hetcache.progress", { detail })),
    /** The host's word that a prompt was interrupted. */
    stop: (prompt) => app.api.dispatchEvent(new CustomEvent("execution_interrupted", { detail: { prompt_id: prompt } })),
    lookAt(type, n) {
      const node = HET.node(type, n);
      const view = app.canvas.ds;
      view.scale = 1;
      [view.offset[0], view.offset[1]] = [180 - node.pos[0], 110 - node.pos[1]];
      app.canvas.setDirty(true, true);
    },
    /** Pixels of a panel that cannot be seen without scrolling. */
    hidden(name) {
      const panel = HET.panel(name);
      return panel.scrollHeight - panel.clientHeight;
    },
    /** Texts (4.5 : 1) and bars (3 : 1) of a panel that do not stand out from it as WCAG 2.1 AA asks. */
    faint(name) {
      const panel = HET.panel(name);
      const back = parse(getComputedStyle(panel).backgroundColor);
      if (back.a < 1) throw new Error("the panel is see-through");
      const ratio = (element, text) => {
        const colour = parse(text);
        for (let e = element; e !== panel.parentElement; e = e.parentElement) colour.a *= getComputedStyle(e).opacity;
        const seen = colour.rgb.map((v, i) => v * colour.a + back.rgb[i] * (1 - colour.a));
        const [low, high] = [luminance(seen), luminance(back.rgb)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
      };
      const found = [];
      const walker = document.createTreeWalker(panel, NodeFilter.SHOW_TEXT);
      for (let text = walker.nextNode(); text; text = walker.nextNode()) {
        const holder = text.parentElement;
        if (!text.data.trim() || holder.closest("title, option")) continue;
        found.push([text.data.slice(0, 40), ratio(holder, getComputedStyle(holder).color), 4.5]);
      }
      for (const bar of panel.querySelectorAll(".het-bar")) {
        found.push([bar.getAttribute("class"), ratio(bar, getComputedStyle(bar).stroke), 3]);
      }
      return found.filter(([, has, wanted]) => has < wanted);
    },
  };
  window.HET = HET;
  app.api.addEventListener("hetcache.progress", ({ detail }) => HET.events.push(detail));
}
