// The page's state and its wiring: which conversation is shown, which answer is being written, what each
// button does. `body[data-state]` is "loading", "idle" or "streaming".

import { byId, fillIcons, flashIcon, growToText, isSendKey } from "./dom.js";
import { chooseLanguage, currentLanguage, setLanguage, t, translatePage } from "./i18n.js";
import { copyText } from "./clipboard.js";
import { addAnswer, addQuestion, editQuestion, newConversation, newId, promptOf, retryAnswer, settleInterrupted, showVersion } from "./conversation.js";
import { fetchAbout, fetchLoad, fetchModels, fetchTokens } from "./chat_client.js";
import { Library } from "./library.js";
import { LoadView } from "./load.js";
import { nextTheme, showThemeName } from "./look.js";
import { Menu } from "./menu.js";
import { keepPreference, readPreference } from "./preferences.js";
import { parseSampling } from "./sampling.js";
import { AnswerRun } from "./run.js";
import { EndFollower, Transcript } from "./transcript.js";
import { SettingsPanel } from "./panel.js";
import { SidePanel } from "./side.js";
import { Sidebar } from "./sidebar.js";
import { TokensView } from "./tokens.js";
import { announce, toast } from "./notices.js";
import { castVote } from "./voting.js";
import { promptOfCard, showWelcome } from "./welcome.js";

const MODELS_RETRY_MS = 3000;
const ANNOUNCED_CHARS = 600;
const NEARLY_FULL = 0.85; // of the context

const prompt = byId("prompt");
const follower = new EndFollower(byId("scroller"), byId("to-end"));
const transcript = new Transcript(byId("log"), follower);
const library = new Library();

let conversation; // the one on screen; not in the library until it has a message
let run = null; // the answer being written, perhaps of another conversation
let models = [];
let inspected = null; // index of the answer whose prompt the tokens tab shows; null: the last answer
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
    if (conversation.messages.length) library.save(conversation);
  },
  onModel: (id) => {
    keepPreference("model", id);
    showService();
  },
});
const tokens = new TokensView({ fetchTokens });
const load = new LoadView({ fetchLoad });
const side = new SidePanel({
  onShow: (name) => {
    load.show(name === "load");
    if (name === "tokens") showTokens();
  },
});

const freshConversation = () =>
  newConversation({ id: newId(), now: Date.now(), systemPrompt: readPreference("system-prompt") ?? "" });

const setState = (state) => {
  document.body.dataset.state = state;
  byId("send").hidden = state === "streaming";
  byId("stop").hidden = state !== "streaming";
};

// Conversations -----------------------------------------------------------------------------------------

async function refreshSidebar() {
  sidebar.show(await library.all(), conversation.id);
}

async function renameConversation(id, title) {
  const record = id === conversation.id ? conversation : await library.get(id);
  Object.assign(record, { title, isNamed: true });
  if (run?.conversation.id === id) Object.assign(run.conversation, { title, isNamed: true });
  await library.save(record);
  await refreshSidebar();
  showHead();
}

async function deleteConversation(id) {
  const record = id === conversation.id ? conversation : await library.get(id);
  if (run?.conversation.id === id) run.stop();
  await library.remove(id);
  if (id === conversation.id) await open(freshConversation());
  await refreshSidebar();
  toast(t("removed", { title: record.title }), {
    label: t("undo"),
    onclick: async () => {
      await library.save(record);
      await open(record);
    },
  });
}

async function open(next) {
  conversation = next;
  inspected = null;
  showHead();
  refreshSidebar();
  setState("loading");
  const shown = run?.conversation.id === next.id ? run : null;
  if (shown) conversation = shown.conversation; // the one being written is newer than the stored one
  await transcript.show(conversation, shown);
  showTokens();
  if (conversation.id === next.id) setState(run ? "streaming" : "idle");
}

async function openStored(id) {
  closeMenu();
  const record = id === conversation.id ? null : await library.get(id);
  if (record) await open(run?.conversation.id === id ? record : settleInterrupted(record));
}

// Showing -----------------------------------------------------------------------------------------------

function showHead() {
  const isEmpty = !conversation.messages.length;
  byId("title").textContent = conversation.title;
  byId("title").hidden = !conversation.title;
  byId("export-button").hidden = isEmpty;
  byId("welcome").hidden = !isEmpty;
  byId("system-chip").hidden = !conversation.systemPrompt.trim();
  panel.showSystemPrompt(conversation.systemPrompt);
  document.title = conversation.title ? `${conversation.title} · TeleChat` : "TeleChat";
  showUsage();
}

function showUsage() {
  const used = conversation.messages.at(-1)?.stats?.contextTokens;
  const limit = chosenModel()?.max_model_len;
  const part = used && limit ? Math.min(1, used / limit) : 0;
  byId("usage").hidden = !used;
  byId("usage").classList.toggle("nearly-full", part > NEARLY_FULL);
  byId("usage-part").setAttribute("stroke-dasharray", `${100 * part} 100`);
  byId("usage-text").textContent = !used ? "" : limit ? t("contextUsed", { used, limit }) : t("contextTokens", { used });
}

/** Bring the tokens tab up to date, if it is shown. */
function showTokens(index = inspected ?? conversation.messages.findLastIndex(({ role }) => role === "assistant")) {
  if (side.shown !== "tokens") return;
  const answer = conversation.messages[index];
  const model = answer?.model ?? chosenModel()?.id;
  tokens.show(answer ? { model, messages: promptOf(conversation, index), said: answer.stats?.promptTokens } : null);
}

const chosenModel = () => models.find(({ id }) => id === readPreference("model")) ?? models[0];

function showService(failed = false) {
  const model = chosenModel();
  byId("service").dataset.service = model ? "up" : failed ? "down" : "unknown";
  byId("service-name").textContent = model?.id ?? t(failed ? "serviceDown" : "serviceUnknown");
  panel.showModels(models, model?.id);
  showWelcome(model?.id);
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

async function learnAbout() {
  // Without an answer there is nothing extra to offer.
  const about = await fetchAbout().catch(() => ({ feedback: false }));
  document.body.classList.toggle("takes-votes", about.feedback === true);
}

// Asking ------------------------------------------------------------------------------------------------

function ask(text) {
  if (run || !text.trim()) return;
  addQuestion(conversation, text.trim(), Date.now());
  transcript.addQuestion(conversation.messages.at(-1), conversation.messages.length - 1);
  write(addAnswer(conversation, { now: Date.now(), model: chosenModel()?.id }));
}

function retry() {
  if (run) return;
  transcript.truncate(conversation.messages.length - 1);
  write(retryAnswer(conversation, { now: Date.now(), model: chosenModel()?.id }));
}

function askEdited(index, text) {
  if (run) return;
  editQuestion(conversation, index, text, Date.now());
  transcript.truncate(index);
  transcript.addQuestion(conversation.messages[index], index);
  write(addAnswer(conversation, { now: Date.now(), model: chosenModel()?.id }));
}

/** Let the last message, an empty answer, be written. */
async function write(message) {
  const asked = conversation;
  inspected = null;
  showHead();
  transcript.addAnswer(message, asked.messages.length - 1);
  showTokens();
  setState("streaming");
  run = new AnswerRun({
    conversation: asked, answer: message, sampling,
    save: () => library.save(asked),
    onFrame: (page) => {
      if (conversation !== asked) return;
      transcript.liveView(run).applyFrame(page);
      follower.follow();
    },
  });
  const finished = run.finish({ unreachable: t("pageUnreachable") });
  await library.save(asked);
  refreshSidebar();
  await finished;
  run = null;
  asked.updatedAt = Date.now();
  // A conversation deleted while it was being answered must not come back.
  if (await library.get(asked.id)) await library.save(asked);
  if (conversation === asked) {
    transcript.views.at(-1).refresh();
    follower.follow();
    showUsage();
    showTokens();
  }
  announce(message.error ? t("answerFailed", { message: message.error }) : t("answerReady", { text: message.text.slice(0, ANNOUNCED_CHARS) }));
  if (message.status === "error") watchService();
  await refreshSidebar();
  setState("idle");
}

/** Show the answer to the last question that is `step` places further on. */
async function turnVersion(step) {
  const shown = run ? null : showVersion(conversation, conversation.messages.at(-1).place + step);
  if (!shown) return;
  inspected = null;
  library.save(conversation);
  await transcript.replaceLast(shown);
  showUsage();
  showTokens();
}

async function vote(asked, index, choice) {
  const answer = asked.messages[index];
  const { isKept, text } = await castVote(asked, index, choice);
  toast(text);
  if (!isKept) return;
  await library.save(asked);
  transcript.views.find((view) => view.message === answer)?.refresh();
}

// Buttons -----------------------------------------------------------------------------------------------

const closeMenu = () => document.body.classList.remove("menu-open");

async function copyFrom(button, text) {
  const isCopied = await copyText(text);
  announce(t(isCopied ? "copied" : "copyFailed"));
  if (!isCopied) return toast(t("copyFailed"));
  flashIcon(button, "check", 1500);
}

const indexOf = (button) => Number(button.closest("[data-index]").dataset.index);
const idOf = (button) => button.closest("[data-id]").dataset.id;

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
  settings: () => side.toggle("settings"),
  load: () => side.toggle("load"),
  tokens: () => {
    inspected = null;
    side.toggle("tokens");
  },
  "answer-tokens": (button) => {
    inspected = indexOf(button);
    side.open("tokens");
  },
  "close-panel": () => side.close(),
  "reset-sampling": () => {
    sampling = {};
    keepPreference("sampling", "{}");
    panel.showSampling(sampling);
  },
  language: () => useLanguage(currentLanguage() === "zh" ? "en" : "zh"),
  theme: nextTheme,
  showcase: (button) => ask(promptOfCard(button.dataset.showcase)),
  quick: (button) => ask(button.textContent),
  stop: () => run?.stop(),
  "to-end": () => follower.jump(),
  copy: (button) => copyFrom(button, conversation.messages[indexOf(button)].text),
  "copy-code": (button) => copyFrom(button, button.closest(".code").querySelector("code").textContent),
  "copy-ids": (button) => copyFrom(button, JSON.stringify(tokens.ids)),
  edit: (button) => {
    const index = indexOf(button);
    if (!run) transcript.edit(index, (text) => askEdited(index, text));
  },
  retry,
  older: () => turnVersion(-1),
  newer: () => turnVersion(1),
  "vote-up": (button) => vote(conversation, indexOf(button), "up"),
  "vote-down": (button) => vote(conversation, indexOf(button), "down"),
  "export-markdown": () => library.exportMarkdown(conversation),
  "export-json": () => library.exportJson(conversation),
  "export-all": () => library.exportAll(),
  import: () => library.import().then(refreshSidebar),
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
  new Menu(byId("export-button"), byId("export-menu"));
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
    side.close();
  });
  addEventListener("pagehide", () => run && library.save(run.conversation));
}

async function start() {
  setLanguage(chooseLanguage(readPreference("language"), navigator.languages));
  conversation = freshConversation();
  fillIcons();
  showWords();
  listen();
  await library.open({ onChange: refreshSidebar });
  watchService();
  learnAbout();
  await open(conversation);
  prompt.focus({ preventScroll: true });
}

start();
