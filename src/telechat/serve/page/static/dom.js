// Building elements and icons. Text always goes in as text; HTML strings are `rendered.js`'s business alone.

const ICONS = {
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6 6 18",
  menu: "M4 7h16M4 12h16M4 17h16",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14Zm5.200 12.200L21 21",
  globe: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18ZM3 12h18M12 3c5 5 5 13 0 18M12 3c-5 5-5 13 0 18",
  moon: "M20 14.500A8.500 8.500 0 0 1 9.500 4a8.500 8.500 0 1 0 10.500 10.500Z",
  sliders: "M4 7h9m5 0h2M4 17h2m5 0h9M15.500 4.500v5M8.500 14.500v5",
  up: "M12 19V6M6 11.500 12 5.500l6 6",
  down: "M12 5v13M6 12.500l6 6 6-6",
  stop: "M7.500 7.500h9v9h-9Z",
  person: "M12 4.500a3.500 3.500 0 1 0 0 7 3.500 3.500 0 0 0 0-7ZM5 20c0-4 3-6 7-6s7 2 7 6",
  copy: "M9 9h10v11H9ZM5 15V4h10",
  check: "M5 12.500 10 17.500 19.500 7",
  edit: "M4 20l1-4.500L16 4.500l3.500 3.500-11 11ZM13.500 7l3.500 3.500",
  retry: "M19.500 8A8 8 0 1 0 20 13M20 4v4.500h-4.500",
  trash: "M5 7h14M9.500 7V4.500h5V7M7 7l1 13h8l1-13M10.500 11v5.500M13.500 11v5.500",
  download: "M12 4v11M7 10.500l5 5 5-5M5 20h14",
  upload: "M12 15.500v-11M7 9l5-5 5 5M5 20h14",
  older: "M14.500 6 8.500 12l6 6",
  newer: "M9.500 6l6 6-6 6",
  thumbUp: "M4 11h3.500v9H4ZM7.500 11.500 11.500 4c1.500 0 2.500 1 2.200 2.800L13 10.500h5.200c1.300 0 2.200 1.200 1.800 2.500l-1.700 5.500c-.3.9-1.100 1.500-2 1.500H7.500",
  thumbDown: "M4 13h3.500V4H4ZM7.500 12.500 11.500 20c1.500 0 2.500-1 2.200-2.800L13 13.500h5.200c1.300 0 2.200-1.200 1.800-2.500l-1.700-5.500c-.3-.9-1.100-1.500-2-1.500H7.500",
  tokens: "M4 6h6.500v5H4ZM13.500 6H20v5h-6.500ZM4 14h9v5H4ZM16 14h4v5h-4Z",
  calendar: "M4.500 6h15v14h-15ZM4.500 10.500h15M8.500 3.500v4M15.500 3.500v4M8.500 15h3",
  document: "M6 3.500h8l4 4v13H6ZM14 3.500v4h4M9 12h6M9 16h6",
  code: "M8.500 7 3.500 12l5 5M15.500 7l5 5-5 5M13.500 5l-3 14",
  sum: "M17.500 7V4.500h-11L13 12l-6.500 7.500h11V17",
  shield: "M12 3.500 5 6v6c0 4.500 3 7.500 7 8.500 4-1 7-4 7-8.500V6ZM9 12l2.200 2.200L15.500 10",
  list: "M9 6.500h11M9 12h11M9 17.500h11M4.500 6.500h.01M4.500 12h.01M4.500 17.500h.01",
  table: "M4 5h16v14H4ZM4 10h16M4 14.500h16M11 10v9",
  book: "M12 6.500C10 5 7 4.500 3.500 5v13.500c3.500-.5 6.500 0 8.500 1.500 2-1.500 5-2 8.500-1.500V5c-3.500-.5-6.500 0-8.500 1.500ZM12 6.500V20",
};

const SVG = "http://www.w3.org/2000/svg";

/** h("p", { class: "x", dataset: { act: "y" }, onclick }, child, "text", …) */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "dataset") Object.assign(element.dataset, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button that shows an icon and says `label`. */
export function iconButton(name, label, act, attributes = {}) {
  return h("button", { type: "button", class: "icon-button", title: label, "aria-label": label, dataset: { act }, ...attributes }, icon(name));
}

/** Put icons into the static elements that name one. */
export function fillIcons(root = document) {
  for (const element of root.querySelectorAll("[data-icon]")) element.prepend(icon(element.dataset.icon));
}

/** Show another icon in `button` for a moment. */
export function flashIcon(button, name, milliseconds) {
  const path = button.querySelector(".icon path");
  path.dataset.usual ??= path.getAttribute("d");
  path.setAttribute("d", ICONS[name]);
  setTimeout(() => path.setAttribute("d", path.dataset.usual), milliseconds);
}

export const byId = (id) => document.getElementById(id);

/** Make a textarea as tall as its text, up to the limit its CSS sets. */
export function growToText(textarea) {
  textarea.style.height = "auto";
  textarea.style.height = `${textarea.scrollHeight + textarea.offsetHeight - textarea.clientHeight}px`;
}

/** Whether this key event means "send": Enter, without Shift, and not the Enter that ends an IME's word. */
export const isSendKey = (event) =>
  event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
