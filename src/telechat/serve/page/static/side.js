// The panel at the side and its tabs: settings, tokens, load. Says which tab is shown; knows nothing of what is in one.

import { byId } from "./dom.js";

export class SidePanel {
  /** `onShow(name)` after every change of what is shown; null when the panel is closed. */
  constructor({ onShow }) {
    this.panel = byId("side");
    this.tabs = [...this.panel.querySelectorAll("[role=tab]")];
    this.onShow = onShow;
    this.current = this.tabs[0].dataset.tab;
    for (const tab of this.tabs) tab.addEventListener("click", () => this.open(tab.dataset.tab));
    this.panel.querySelector("[role=tablist]").addEventListener("keydown", (event) => this.#move(event));
    this.#draw();
  }

  /** The tab on screen, or null. */
  get shown() {
    return this.panel.hidden ? null : this.current;
  }

  open(name) {
    this.current = name;
    this.panel.hidden = false;
    this.#draw();
  }

  close() {
    if (this.panel.hidden) return;
    this.panel.hidden = true;
    this.#draw();
  }

  toggle(name) {
    if (this.shown === name) this.close();
    else this.open(name);
  }

  #draw() {
    for (const tab of this.tabs) {
      const isCurrent = tab.dataset.tab === this.current;
      tab.setAttribute("aria-selected", String(isCurrent));
      tab.tabIndex = isCurrent ? 0 : -1;
      byId(tab.dataset.tab).hidden = !isCurrent;
    }
    document.querySelector("#topbar [data-act=settings]").setAttribute("aria-expanded", String(!this.panel.hidden));
    this.onShow(this.shown);
  }

  #move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const place = this.tabs.findIndex((tab) => tab.dataset.tab === this.current);
    const next = this.tabs.at((place + step) % this.tabs.length);
    this.open(next.dataset.tab);
    next.focus();
  }
}
