// A small menu below a button: opened by the button, closed by Escape, a choice, or a click elsewhere.

export class Menu {
  constructor(button, menu) {
    this.button = button;
    this.menu = menu;
    document.addEventListener("click", (event) => this.show(button.contains(event.target) && menu.hidden));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || menu.hidden) return;
      event.stopImmediatePropagation();
      this.show(false);
      button.focus();
    }, { capture: true });
  }

  show(isShown) {
    const { button, menu } = this;
    menu.hidden = !isShown;
    button.setAttribute("aria-expanded", String(isShown));
    if (!isShown) return;
    const { bottom, right } = button.getBoundingClientRect();
    menu.style.top = `${bottom + 4}px`;
    menu.style.left = `${Math.max(8, right - menu.offsetWidth)}px`;
    menu.querySelector("button").focus();
  }
}
