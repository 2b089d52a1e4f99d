// The messages of one conversation on screen. Knows how they look; what they mean is main.js's business.

import { h, icon, iconButton, growToText, isSendKey } from "./dom.js";
import { versionsOf } from "./conversation.js";
import { renderedBlock, renderTexts } from "./rendered.js";
import { t } from "./i18n.js";

const END_DISTANCE = 48; // pixels from the end that still count as being there

/** The part of the page that scrolls; it follows the end only while the reader is at the end. */
export class EndFollower {
  constructor(scroller, button) {
    this.scroller = scroller;
    this.button = button;
    this.isAtEnd = true;
    this.reached = 0; // where it last followed to, in pixels
    scroller.addEventListener("scroll", () => this.#look(), { passive: true });
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.isAtEnd = scrollHeight - scrollTop - clientHeight < END_DISTANCE;
    this.button.hidden = this.isAtEnd;
  }

  follow() {
    // The browser tells that a reader has moved up with its next frame only; text may come before that.
    if (this.scroller.scrollTop < this.reached - END_DISTANCE) this.#look();
    if (!this.isAtEnd) {
      this.button.hidden = false;
      return;
    }
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.reached = this.scroller.scrollTop;
  }

  /** Back to the beginning, where an empty conversation shows its welcome. */
  top() {
    this.isAtEnd = true;
    this.button.hidden = true;
    this.reached = 0;
    this.scroller.scrollTop = 0;
  }

  jump() {
    this.isAtEnd = true;
    this.button.hidden = true;
    this.reached = 0;
    this.follow();
  }
}

const noticeOf = (message) =>
  ({
    stopped: () => t("stopped"),
    cutoff: () => t("cutoff"),
    length: () => t("lengthReached"),
    error: () => t("failed", { message: message.error }),
    done: () => (message.text ? "" : t("emptyAnswer")),
  })[message.status]?.() ?? "";

const round = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));

function statsText({ tokens, tokensPerSecond, firstSeconds }) {
  const parts = [];
  if (tokensPerSecond) parts.push(t("statsSpeed", { n: round(tokensPerSecond) }));
  if (tokens) parts.push(t("statsTokens", { n: tokens }));
  if (firstSeconds !== null && firstSeconds !== undefined) parts.push(t("statsFirst", { n: firstSeconds.toFixed(2) }));
  return parts.join(" · ");
}

export function questionView(message, index) {
  return h("article", { class: "message question", dataset: { index }, "aria-label": t("you") },
    h("div", { class: "bubble" }, message.text),
    h("div", { class: "actions" },
      iconButton("copy", t("copy"), "copy"),
      iconButton("edit", t("edit"), "edit")));
}

/** An answer on screen: settled blocks, then the tail that is replaced with every frame. */
export class AnswerView {
  constructor(message, index) {
    this.message = message;
    this.blocks = h("div", { class: "answer" });
    this.tail = null;
    this.notice = h("p", { class: "notice", hidden: true });
    this.stats = h("span", { class: "stats faint" });
    this.element = h("article", { class: "message reply", dataset: { index }, "aria-label": "TeleChat" },
      h("img", { class: "avatar", src: "/static/icon.svg", alt: "", width: 28, height: 28 }),
      h("div", { class: "reply-body" }, this.blocks, this.notice,
        h("div", { class: "actions" }, ...this.#buttons(), this.stats)));
    this.refresh();
  }

  #buttons() {
    this.up = iconButton("thumbUp", t("voteUp"), "vote-up");
    this.down = iconButton("thumbDown", t("voteDown"), "vote-down");
    this.older = iconButton("older", t("older"), "older");
    this.newer = iconButton("newer", t("newer"), "newer");
    this.version = h("span", { class: "faint" });
    return [
      h("span", { class: "versions", hidden: true }, this.older, this.version, this.newer),
      iconButton("copy", t("copy"), "copy"), iconButton("retry", t("retry"), "retry"), this.up, this.down,
      iconButton("tokens", t("showTokens"), "answer-tokens"),
    ];
  }

  #showChoices() {
    const { others = [], place = 0, vote } = this.message;
    this.version.parentElement.hidden = !others.length;
    this.version.textContent = t("versionOf", { n: place + 1, all: versionsOf(this.message).length });
    this.older.disabled = place === 0;
    this.newer.disabled = place >= others.length;
    this.up.setAttribute("aria-pressed", String(vote === "up"));
    this.down.setAttribute("aria-pressed", String(vote === "down"));
  }

  /** Text as it is, until its rendering is there. */
  showPlain() {
    this.blocks.replaceChildren(h("div", { class: "block plain" }, this.message.text));
  }

  showBlocks(blocks) {
    this.blocks.replaceChildren(...blocks.map((html) => this.#finished(renderedBlock(html))));
    this.tail = null;
  }

  applyFrame({ settled, tail }) {
    this.tail?.remove();
    this.blocks.append(...settled.map((html) => this.#finished(renderedBlock(html))));
    this.tail = tail ? renderedBlock(tail) : null;
    if (this.tail) {
      this.tail.classList.add("tail");
      this.blocks.append(this.tail);
    }
    this.refresh();
  }

  /** Bring notice, figures and state up to date with the message. */
  refresh() {
    const { status, stats } = this.message;
    this.element.dataset.status = status;
    const isWaiting = status === "streaming" && !this.blocks.childElementCount;
    const dots = this.blocks.parentElement?.querySelector(".waiting");
    if (isWaiting && !dots) this.blocks.before(h("div", { class: "waiting", role: "img", "aria-label": t("thinking") }, h("i"), h("i"), h("i")));
    if (!isWaiting) dots?.remove();
    this.notice.textContent = noticeOf(this.message);
    this.notice.hidden = !this.notice.textContent;
    this.notice.classList.toggle("bad", status === "error");
    this.stats.textContent = stats ? statsText(stats) : "";
    this.#showChoices();
    if (status !== "streaming" && this.tail) {
      this.#finished(this.tail);
      this.tail = null;
    }
  }

  #finished(block) {
    block.classList.remove("tail");
    for (const head of block.querySelectorAll(".code-head")) {
      head.append(h("button", { type: "button", class: "quiet-button", "aria-label": t("copyCode"), dataset: { act: "copy-code" } }, icon("copy"), h("span", {}, t("copy"))));
    }
    // What scrolls sideways must be reachable by keyboard.
    for (const wide of block.querySelectorAll("pre, .table-wrap, .formula")) wide.tabIndex = 0;
    return block;
  }
}

/** All messages of one conversation. */
export class Transcript {
  constructor(log, follower) {
    this.log = log;
    this.follower = follower;
    this.views = [];
  }

  /** Show `conversation`; `run` is the answer being written, if it is one of these. Resolves when rendered. */
  async show(conversation, run = null) {
    this.views = conversation.messages.map((message, index) =>
      message.role === "user" ? { message, element: questionView(message, index) } : new AnswerView(message, index));
    this.log.replaceChildren(...this.views.map((view) => view.element));
    const shown = this.views;
    const stored = shown.filter((view) => view instanceof AnswerView && view.message.text && view.message !== run?.answer);
    for (const view of stored) view.showPlain();
    if (run) this.liveView(run)?.applyFrame({ settled: run.settled, tail: run.tail });
    if (!shown.length) return this.follower.top();
    this.follower.jump();
    const rendered = await renderTexts(stored.map((view) => view.message.text));
    stored.forEach((view, position) => rendered[position] && view.showBlocks(rendered[position]));
    if (this.views === shown) this.follower.follow();
  }

  addQuestion(message, index) {
    const view = { message, element: questionView(message, index) };
    this.views.push(view);
    this.log.append(view.element);
    this.follower.jump();
  }

  addAnswer(message, index) {
    const view = new AnswerView(message, index);
    this.views.push(view);
    this.log.append(view.element);
    this.follower.jump();
    return view;
  }

  /** Show `message` in place of the last answer. Resolves when rendered. */
  async replaceLast(message) {
    const view = new AnswerView(message, this.views.length - 1);
    this.views.pop().element.replaceWith(view.element);
    this.views.push(view);
    view.showPlain();
    const [blocks] = await renderTexts([message.text]);
    if (blocks) view.showBlocks(blocks);
    this.follower.follow();
  }

  /** Remove the messages from `index` on. */
  truncate(index) {
    for (const view of this.views.splice(index)) view.element.remove();
  }

  liveView(run) {
    return this.views.find((view) => view.message === run.answer);
  }

  /** Turn the question at `index` into a form; calls `onSave(text)` when it is sent. */
  edit(index, onSave) {
    const { message, element } = this.views[index];
    const area = h("textarea", { "aria-label": t("editLabel"), rows: 1 });
    area.value = message.text;
    const close = () => {
      const fresh = questionView(message, index);
      form.replaceWith(fresh);
      this.views[index].element = fresh;
      fresh.querySelector("[data-act=edit]").focus();
    };
    const save = () => {
      const text = area.value.trim();
      if (!text) return;
      form.replaceWith(element);
      onSave(text);
    };
    const form = h("form", { class: "message question editing", onsubmit: (event) => (event.preventDefault(), save()) },
      area,
      h("div", { class: "edit-row" },
        h("button", { type: "button", class: "plain-button", dataset: { act: "cancel-edit" }, onclick: close }, t("cancel")),
        h("button", { type: "submit", class: "plain-button accent", dataset: { act: "save-edit" } }, t("saveAndSend"))));
    area.addEventListener("input", () => growToText(area));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      else if (isSendKey(event)) (event.preventDefault(), save());
    });
    element.replaceWith(form);
    growToText(area);
    area.focus();
  }
}
