// The tab with the tokens of a prompt: exactly what the service gives to the model, in its order.

import { byId, h } from "./dom.js";
import { t } from "./i18n.js";

const BLOCK = 400; // tokens drawn as one group, so that the browser skips groups off screen
const CONTROL = /^<(?!0x)[/|]?_?\w+\|?>$/;

export class TokensView {
  /** `fetchTokens(model, messages)` asks the service. */
  constructor({ fetchTokens }) {
    this.fetchTokens = fetchTokens;
    this.list = byId("token-list");
    this.ids = [];
    this.question = null; // of the list on screen or on its way
    byId("show-ids").addEventListener("change", (event) => this.list.classList.toggle("with-ids", event.target.checked));
  }

  /** Show the prompt of one answer: `{ model, messages, said }`, `said` being how many tokens the service counted. */
  async show(question) {
    this.question = question;
    if (!question) return this.#say(t("tokensNone"));
    this.#say(t("tokensLoading"));
    try {
      const { tokens, token_strs: texts } = await this.fetchTokens(question.model, question.messages);
      if (this.question === question) this.#draw(tokens, texts ?? tokens.map(String), question.said);
    } catch (error) {
      if (this.question === question) this.#say(t("tokensFailed", { message: error.message }), true);
    }
  }

  #say(text, isBad = false) {
    const status = byId("tokens-status");
    status.textContent = text;
    status.hidden = false;
    status.classList.toggle("bad", isBad);
    this.ids = [];
    this.list.replaceChildren();
    this.list.hidden = byId("tokens-tools").hidden = true;
  }

  #draw(ids, texts, said) {
    const n = ids.length;
    const isOther = Number.isInteger(said) && said !== n;
    this.#say(Number.isInteger(said) ? t(isOther ? "tokensDiffer" : "tokensAgree", { n, said }) : t("tokensCount", { n }), isOther);
    this.ids = ids;
    const groups = [];
    for (let start = 0; start < n; start += BLOCK) {
      const tokens = ids.slice(start, start + BLOCK).flatMap((id, place) => tokenElements(id, texts[start + place]));
      groups.push(h("div", { class: "token-group" }, ...tokens));
    }
    this.list.replaceChildren(...groups);
    this.list.hidden = byId("tokens-tools").hidden = false;
  }
}

function tokenElements(id, text) {
  const kind = CONTROL.test(text) ? "token control" : "token";
  const element = h("span", { class: kind, title: String(id), dataset: { id } }, shownText(text));
  return text.includes("\n") ? [element, h("br")] : [element];
}

// Line ends and tabs are characters like others here; seen, they must not vanish.
const shownText = (text) => text.replace(/\r/g, "␍").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
