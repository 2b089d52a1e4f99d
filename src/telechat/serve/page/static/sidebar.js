// The list of conversations: newest first, searchable, each with rename and delete.

import { h, iconButton } from "./dom.js";
import { matchesQuery } from "./conversation.js";
import { t } from "./i18n.js";

export class Sidebar {
  /** `onRename(id, title)`; opening and deleting go through `data-act`, like every other button. */
  constructor({ list, empty, search, onRename }) {
    Object.assign(this, { list, empty, search, onRename });
    this.conversations = [];
    this.currentId = null;
    search.addEventListener("input", () => this.draw());
  }

  show(conversations, currentId) {
    this.conversations = [...conversations].sort((a, b) => b.updatedAt - a.updatedAt);
    this.currentId = currentId;
    if (!this.list.querySelector("input")) this.draw(); // a rename under way must not lose its field
  }

  draw() {
    const found = this.conversations.filter((conversation) => matchesQuery(conversation, this.search.value));
    this.list.replaceChildren(...found.map((conversation) => this.#row(conversation)));
    this.empty.hidden = found.length > 0 || !this.search.value;
  }

  #row({ id, title }) {
    const name = title || t("untitled");
    return h("li", { dataset: { id } },
      h("button", { type: "button", class: "row-open", dataset: { act: "open" }, title: name, "aria-current": id === this.currentId ? "true" : null }, name),
      iconButton("edit", t("rename"), "rename"),
      iconButton("trash", t("remove"), "delete"));
  }

  rename(id) {
    const row = [...this.list.children].find((item) => item.dataset.id === id);
    const { title } = this.conversations.find((conversation) => conversation.id === id);
    const field = h("input", { type: "text", "aria-label": t("renameLabel"), maxlength: 120 });
    field.value = title;
    let isOver = false;
    const end = (isKept) => {
      if (isOver) return; // leaving the field after Enter or Escape comes here again
      isOver = true;
      const name = field.value.trim();
      field.remove();
      if (isKept && name && name !== title) this.onRename(id, name);
      else this.draw();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing) end(true);
      if (event.key === "Escape") (event.stopPropagation(), end(false));
    });
    field.addEventListener("blur", () => end(true));
    row.replaceChildren(field);
    field.select();
  }
}
