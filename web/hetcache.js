/** HetCache in the browser: puts its panels on the nodes and brings them the news of the server. */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { el } from "./hetcache/dom.js";
import { Desk } from "./hetcache/desk.js";
import { learn } from "./hetcache/words.js";

const desk = new Desk(app, api);

app.registerExtension({
  name: "hetcache.panels",
  async setup() {
    document.head.append(el("link", { rel: "stylesheet", href: new URL("./hetcache/style.css", import.meta.url).href }));
    desk.listen();
    await learn(app, api);
  },
  nodeCreated(node) {
    desk.furnish(node);
  },
});
