// The list of conversations, and what can be done with them.

import { alertUser, button, byId, download, element } from "./dom.js";
import { fromFile, toFile } from "./archive.js";
import { titleOf } from "./tree.js";

const WIDE = matchMedia("(min-width: 56rem)");

export class Sidebar {
  // `actions`: open(conversation), create(), current(), discard(conversation) and store.
  constructor(actions) {
    this.actions = actions;
    byId("new").onclick = () => {
      actions.create();
      this.#closeIfNarrow();
    };
    byId("menu").onclick = () => this.#toggle();
    byId("shade").onclick = () => this.#toggle(false);
    byId("import").onclick = () => byId("import-file").click();
    byId("import-file").onchange = () => this.#import();
    byId("export-all").onclick = async () => this.#export(await actions.store.all(), "ventoux-conversations.json");
    byId("export").onclick = () => this.#export([actions.current()], "ventoux-conversation.json");
    byId("rename").onclick = () => this.#rename(actions.current());
    byId("delete").onclick = () => this.#delete(actions.current());
    byId("sidebar").onkeydown = (event) => {
      if (event.key === "Escape" && !WIDE.matches) {
        event.stopPropagation();
        this.#toggle(false);
        byId("menu").focus();
      }
    };
    WIDE.onchange = () => this.#toggle(WIDE.matches);
    this.#toggle(WIDE.matches);
  }

  async show() {
    const current = this.actions.current();
    const items = (await this.actions.store.list()).map(({ id, title }) => {
      const open = button(title, async () => {
        // The one that is shown may be growing: what is stored of it is older.
        const chosen = id === this.actions.current().id ? null : await this.actions.store.get(id);
        if (chosen) this.actions.open(chosen);
        this.#closeIfNarrow();
      });
      if (id === current.id) open.setAttribute("aria-current", "true");
      return element("li", "", open);
    });
    byId("conversations").replaceChildren(...items);
    byId("title").textContent = titleOf(current);
    for (const id of ["export", "rename", "delete"]) byId(id).disabled = current.leaf === null;
  }

  #toggle(open = byId("sidebar").hidden) {
    byId("sidebar").hidden = !open;
    byId("shade").hidden = !open || WIDE.matches;
    byId("chat").inert = open && !WIDE.matches;
    byId("menu").setAttribute("aria-expanded", String(open));
    if (open && !WIDE.matches) byId("new").focus();
  }
  #closeIfNarrow() {
    if (!WIDE.matches) {
      this.#toggle(false);
      byId("input").focus();
    }
  }

  #export(conversations, name) {
    download(name, toFile(conversations));
  }
  async #import() {
    const [file] = byId("import-file").files;
    byId("import-file").value = "";
    try {
      const found = fromFile(await file.text());
      for (const conversation of found) await this.actions.store.put(conversation);
      alertUser("");
      if (found.length) this.actions.open(found[0]);
      this.#closeIfNarrow();
    } catch (error) {
      alertUser(`${file.name}: ${error.message}`);
    }
  }
  #rename(conversation) {
    byId("more").open = false;
    const field = element("input");
    field.value = titleOf(conversation);
    field.setAttribute("aria-label", "Name of this chat");
    let over = false;
    const end = async (keep) => {
      if (over) return;
      over = true;
      field.remove();
      byId("title").hidden = false;
      if (keep && field.value.trim()) {
        conversation.title = field.value.trim().slice(0, 200);
        await this.actions.store.put(conversation);
      }
      this.show();
    };
    field.onblur = () => end(true);
    field.onkeydown = (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        end(false);
      }
    };
    byId("title").hidden = true;
    byId("title").before(field);
    field.select();
  }
  async #delete(conversation) {
    byId("more").open = false;
    if (!confirm(`Delete “${titleOf(conversation)}”? It cannot be brought back.`)) return;
    await this.actions.discard(conversation);
    this.actions.create();
  }
}
