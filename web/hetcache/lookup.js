/** Which node an id of the server means, through subgraphs: "12:5" is node 5 inside subgraph node 12. */

/** @returns the node, or undefined where the workflow on screen has none of that id */
export function nodeOf(root, id) {
  let graph = root;
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById?.(/^\d+$/.test(part) ? Number(part) : part);
    if (!node) return undefined;
    graph = node.subgraph;
  }
  return node;
}

/** Every node of a graph and of the subgraphs in it, with the id the server knows it by. */
export function* everyNode(graph, prefix = "") {
  for (const node of graph?.nodes ?? graph?._nodes ?? []) {
    const id = `${prefix}${node.id}`;
    yield [id, node];
    if (node.subgraph) yield* everyNode(node.subgraph, `${id}:`);
  }
}

/** Server ids of the nodes of a kind that an output of `node` leads to, within its own graph; [] beyond it. */
export function readers(root, node, kind) {
  const graph = node.graph;
  const links = (node.outputs ?? []).flatMap((output) => output.links ?? []);
  const targets = links.map((id) => (graph?.links?.get ? graph.links.get(id) : graph?.links?.[id])?.target_id);
  return [...everyNode(root)].filter(([, other]) =>
    other.comfyClass === kind && other.graph === graph && targets.includes(other.id)).map(([id]) => id);
}
