// What an empty conversation shows: the showcases as cards, and questions to click. The demo model gets its own.

import { byId, fillIcons, h } from "./dom.js";
import { currentLanguage } from "./i18n.js";
import { demoQuickQuestions, demoShowcases, quickQuestions, showcases } from "./showcases.js";

// Named so by `telechat serve demo` and `telechat deploy`.
const DEMO_MODEL = "demo";

/** Show what `model` can be asked. */
export function showWelcome(model) {
  const language = currentLanguage();
  const isDemo = model === DEMO_MODEL;
  // Drawn again only for other cards: a click or the focus may be on one.
  const shown = `${language} ${isDemo}`;
  if (byId("welcome").dataset.shown === shown) return;
  byId("welcome").dataset.shown = shown;
  const questions = (isDemo ? demoQuickQuestions : quickQuestions)[language];
  byId("demo-note").hidden = !isDemo;
  byId("showcases").replaceChildren(...(isDemo ? demoShowcases : showcases).map((card) => cardElement(card, language)));
  byId("quick-questions").replaceChildren(...questions.map((question) =>
    h("button", { type: "button", class: "chip", dataset: { act: "quick" } }, question)));
  fillIcons(byId("showcases"));
}

const cardElement = ({ id, icon, title, prompt }, language) =>
  h("li", {}, h("button", { type: "button", class: "card", dataset: { act: "showcase", showcase: id } },
    h("span", { class: "card-icon", dataset: { icon } }), h("strong", {}, title[language]), h("span", { class: "faint" }, prompt[language])));

/** The question on the card `id`, in the language of the page. */
export const promptOfCard = (id) => [...showcases, ...demoShowcases].find((card) => card.id === id).prompt[currentLanguage()];
