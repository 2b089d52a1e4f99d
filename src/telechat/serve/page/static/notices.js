// Short messages: a toast to see, and the polite announcer for screen readers.

import { byId } from "./dom.js";

const SHOWN_MS = 7000;
let hiding = 0;

/** Show `text` for a while, with at most one button. */
export function toast(text, action = null) {
  clearTimeout(hiding);
  const box = byId("toast");
  const button = byId("toast-action");
  byId("toast-text").textContent = text;
  button.hidden = !action;
  button.textContent = action?.label ?? "";
  button.onclick = () => {
    box.hidden = true;
    action?.onclick();
  };
  box.hidden = false;
  hiding = setTimeout(() => (box.hidden = true), SHOWN_MS);
}

/** Say `text` once, when the screen reader has time. */
export function announce(text) {
  byId("announcer").textContent = text;
}
