// The page's state and its wiring: which conversation is shown, which answer is being written, what each
// button does. `body[data-state]` is "loading", "idle" or "streaming".

import { byId, fillIcons, flashIcon, growToText, h, isSendKey } from "./dom.js";
import { chooseLanguage, currentLanguage, setLanguage, t, translatePage } from "./i18n.js";
import { copyText } from "./clipboard.js";
import { addAnswer, addQuestion, dropLastAnswer, editQuestion, newConversation, newId, settleInterrupted } from "./conversation.js";
import { fetchModels } from "./chat_client.js";
import { keepPreference, readPreference } from "./preferences.js";
import { parseSampling } from "./sampling.js";
import { AnswerRun } from "./run.js";
import { openStore } from "./store.js";
import { EndFollower, Transcript } from "./transcript.js";
import { demoQuickQuestions, demoShowcases, quickQuestions, showcases } from "./showcases.js";
import { SettingsPanel } from "./panel.js";
import { Sidebar } from "./sidebar.js";
import { announce, toast } from "./notices.js";

// Named so by `telechat serve demo` and `telechat deploy`.
const DEMO_MODEL = "demo";
const MODELS_RETRY_MS = 3000;
const ANNOUNCED_CHARS = 600;
const THEMES = ["auto", "light", "dark"];

const prompt = byId("prompt");
const follower = new EndFollower(byId("scroller"), byId("to-end"));
const transcript = new Transcript(byId("log"), follower);
const channel = "BroadcastChannel" in window ? new BroadcastChannel("telechat") : null;

let store;
let conversation; // the one on screen; not in the store until it has a message
let run = null; // the answer being written, perhaps of another conversation
let models = [];
let sampling = parseSampling(readPreference("sampling"));

const sidebar = new Sidebar({
  list: byId("conversations"), empty: byId("no-conversations"), search: byId("search"), onRename: renameConversation,
});
const panel = new SettingsPanel({
  onSampling: (changed) => {
    sampling = changed;
    keepPreference("sampling", JSON.stringify(sampling));
  },
  onSystemPrompt: (text) => {
    conversation.systemPrompt = text;
    keepPreference("system-prompt", text);
    byId("system-chip").hidden = !text.trim();
    if (conversation.messages.length) save(conversation);
  },
  onModel: (id) => {
    keepPreference("model", id);
    showService();
  },
});

const freshConversation = () =>
  newConversation({ id: newId(), now: Date.now(), systemPrompt: readPreference("system-prompt") ?? "" });

const setState = (state) => {
  document.body.dataset.state = state;
  byId("send").hidden = state === "streaming";
  byId("stop").hidden = state !== "streaming";
};

// Saving ------------------------------------------------------------------------------------------------

async function save(changed) {
  try {
    await store.put(changed);
    channel?.postMessage("changed");
  } catch (error) {
    const isFull = error?.name === "QuotaExceededError";
    toast(isFull ? t("storageFull") : t("storageFailed", { message: error?.message ?? "" }));
  }
}

async function refreshSidebar() {
  sidebar.show(await store.all(), conversation.id);
}

async function renameConversation(id, title) {
  const record = id === conversation.id ? conversation : await store.get(id);
  Object.assign(record, { title, isNamed: true });
  if (run?.conversation.id === id) Object.assign(run.conversation, { title, isNamed: true });
  await save(record);
  await refreshSidebar();
  showHead();
}

async function deleteConversation(id) {
  const record = id === conversation.id ? conversation : await store.get(id);
  if (run?.conversation.id === id) run.stop();
  await store.remove(id);
  channel?.postMessage("changed");
  if (id === conversation.id) await open(freshConversation());
  await refreshSidebar();
  toast(t("removed", { title: record.title }), {
    label: t("undo"),
    onclick: async () => {
      await save(record);
      await open(record);
    },
  });
}

// Showing -----------------------------------------------------------------------------------------------

function showHead() {
  byId("title").textContent = conversation.title;
  byId("title").hidden = !conversation.title;
  byId("welcome").hidden = conversation.messages.length > 0;
  byId("system-chip").hidden = !conversation.systemPrompt.trim();
  panel.showSystemPrompt(conversation.systemPrompt);
  document.title = conversation.title ? `${conversation.title} · TeleChat` : "TeleChat";
  showUsage();
}

function showUsage() {
  const used = conversation.messages.at(-1)?.stats?.contextTokens;
  const limit = chosenModel()?.max_model_len;
  byId("usage").textContent = !used ? "" : limit ? t("contextUsed", { used, limit }) : t("contextTokens", { used });
}

function showWelcome() {
  const language = currentLanguage();
  const isDemo = chosenModel()?.id === DEMO_MODEL;
  const cards = isDemo ? demoShowcases : showcases;
  const questions = (isDemo ? demoQuickQuestions : quickQuestions)[language];
  byId("demo-note").hidden = !isDemo;
  byId("showcases").replaceChildren(...cards.map(({ id, icon, title, prompt: words }) =>
    h("li", {}, h("button", { type: "button", class: "card", dataset: { act: "showcase", showcase: id } },
      h("span", { class: "card-icon", dataset: { icon } }), h("strong", {}, title[language]), h("span", { class: "faint" }, words[language])))));
  byId("quick-questions").replaceChildren(...questions.map((question) =>
    h("button", { type: "button", class: "chip", dataset: { act: "quick" } }, question)));
  fillIcons(byId("showcases"));
}

const cardOf = (id) => [...showcases, ...demoShowcases].find((card) => card.id === id);

const chosenModel = () => models.find(({ id }) => id === readPreference("model")) ?? models[0];

function showService(failed = false) {
  const model = chosenModel();
  byId("service").dataset.service = model ? "up" : failed ? "down" : "unknown";
  byId("service-name").textContent = model?.id ?? t(failed ? "serviceDown" : "serviceUnknown");
  panel.showModels(models, model?.id);
  if (byId("demo-note").hidden === (model?.id === DEMO_MODEL)) showWelcome();
  showUsage();
}

async function watchService() {
  try {
    models = await fetchModels();
    showService();
  } catch {
    models = [];
    showService(true);
  }
  if (!models.length) setTimeout(watchWhenVisible, MODELS_RETRY_MS);
}

function watchWhenVisible() {
  if (document.visibilityState === "visible") return void watchService();
  document.addEventListener("visibilitychange", watchWhenVisible, { once: true });
}

async function open(next) {
  conversation = next;
  showHead();
  refreshSidebar();
  setState("loading");
  const shown = run?.conversation.id === next.id ? run : null;
  if (shown) conversation = shown.conversation; // the one being written is newer than the stored one
  await transcript.show(conversation, shown);
  if (conversation.id === next.id) setState(run ? "streaming" : "idle");
}

async function openStored(id) {
  closeMenu();
  const record = id === conversation.id ? null : await store.get(id);
  if (record) await open(run?.conversation.id === id ? record : settleInterrupted(record));
}

// Asking ------------------------------------------------------------------------------------------------

function ask(text) {
  if (run || !text.trim()) return;
  addQuestion(conversation, text.trim(), Date.now());
  transcript.addQuestion(conversation.messages.at(-1), conversation.messages.length - 1);
  answer();
}

function retry() {
  if (run) return;
  dropLastAnswer(conversation);
  transcript.truncate(conversation.messages.length);
  answer();
}

function askEdited(index, text) {
  if (run) return;
  editQuestion(conversation, index, text, Date.now());
  transcript.truncate(index);
  transcript.addQuestion(conversation.messages[index], index);
  answer();
}

async function answer() {
  const asked = conversation;
  const message = addAnswer(asked, { now: Date.now(), model: chosenModel()?.id });
  showHead();
  transcript.addAnswer(message, asked.messages.length - 1);
  setState("streaming");
  run = new AnswerRun({
    conversation: asked, answer: message, sampling,
    save: () => save(asked),
    onFrame: (page) => {
      if (conversation !== asked) return;
      transcript.liveView(run).applyFrame(page);
      follower.follow();
    },
  });
  const finished = run.finish({ unreachable: t("pageUnreachable") });
  await save(asked);
  refreshSidebar();
  await finished;
  run = null;
  asked.updatedAt = Date.now();
  if (await isStillKept(asked)) await save(asked);
  if (conversation === asked) {
    transcript.views.at(-1).refresh();
    follower.follow();
    showUsage();
  }
  announce(message.error ? t("answerFailed", { message: message.error }) : t("answerReady", { text: message.text.slice(0, ANNOUNCED_CHARS) }));
  if (message.status === "error") watchService();
  await refreshSidebar();
  setState("idle");
}

/** A conversation deleted while it was being answered must not come back. */
const isStillKept = async (asked) => Boolean(await store.get(asked.id));

// Buttons -----------------------------------------------------------------------------------------------

const closeMenu = () => document.body.classList.remove("menu-open");

async function copyFrom(button, text) {
  const isCopied = await copyText(text);
  announce(t(isCopied ? "copied" : "copyFailed"));
  if (!isCopied) return toast(t("copyFailed"));
  flashIcon(button, "check", 1500);
}

const indexOf = (element) => Number(element.closest("[data-index]").dataset.index);
const idOf = (element) => element.closest("[data-id]").dataset.id;

const acts = {
  new: () => {
    closeMenu();
    return open(freshConversation()).then(() => prompt.focus());
  },
  open: (button) => openStored(idOf(button)),
  rename: (button) => sidebar.rename(idOf(button)),
  delete: (button) => deleteConversation(idOf(button)),
  menu: () => document.body.classList.toggle("menu-open"),
  "close-menu": closeMenu,
  settings: () => panel.toggle(!panel.isOpen),
  "close-settings": () => panel.toggle(false),
  "reset-sampling": () => {
    sampling = {};
    keepPreference("sampling", "{}");
    panel.showSampling(sampling);
  },
  language: () => useLanguage(currentLanguage() === "zh" ? "en" : "zh"),
  theme: () => useTheme(THEMES[(THEMES.indexOf(readPreference("theme") ?? "auto") + 1) % THEMES.length]),
  showcase: (button) => ask(cardOf(button.dataset.showcase).prompt[currentLanguage()]),
  quick: (button) => ask(button.textContent),
  stop: () => run?.stop(),
  "to-end": () => follower.jump(),
  copy: (button) => copyFrom(button, conversation.messages[indexOf(button)].text),
  "copy-code": (button) => copyFrom(button, button.closest(".code").querySelector("code").textContent),
  edit: (button) => {
    const index = indexOf(button);
    if (!run) transcript.edit(index, (text) => askEdited(index, text));
  },
  retry,
};

function useTheme(choice) {
  keepPreference("theme", choice);
  dispatchEvent(new Event("telechat:theme"));
  showThemeName();
}

const showThemeName = () => {
  byId("theme-name").textContent = t({ auto: "themeAuto", light: "themeLight", dark: "themeDark" }[readPreference("theme") ?? "auto"]);
};

function useLanguage(language) {
  setLanguage(language);
  keepPreference("language", language);
  showWords();
  sidebar.draw();
  if (document.body.dataset.state !== "loading") open(conversation);
}

function showWords() {
  translatePage();
  showThemeName();
  showWelcome();
  showService(byId("service").dataset.service === "down");
  panel.showSampling(sampling);
  byId("system-chip").hidden = !conversation.systemPrompt.trim();
}

function sendPrompt() {
  if (run || document.body.dataset.state !== "idle") return;
  const text = prompt.value;
  if (!text.trim()) return;
  prompt.value = "";
  growToText(prompt);
  ask(text);
}

function listen() {
  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-act]");
    if (target && acts[target.dataset.act]) acts[target.dataset.act](target);
  });
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    sendPrompt();
  });
  prompt.addEventListener("input", () => growToText(prompt));
  prompt.addEventListener("keydown", (event) => {
    if (!isSendKey(event)) return;
    event.preventDefault();
    sendPrompt();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    closeMenu();
    panel.toggle(false);
  });
  channel?.addEventListener("message", refreshSidebar);
  addEventListener("pagehide", () => run && store.put(run.conversation));
}

async function start() {
  setLanguage(chooseLanguage(readPreference("language"), navigator.languages));
  conversation = freshConversation();
  fillIcons();
  showWords();
  listen();
  store = await openStore();
  if (!store.isKept) toast(t("storageOff"));
  watchService();
  await open(conversation);
  prompt.focus({ preventScroll: true });
}

start();
