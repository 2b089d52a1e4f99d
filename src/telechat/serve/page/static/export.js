// Conversations as files: Markdown to read, JSON to keep and to read back. Pure: no DOM, no clock but the one given.

const FORMAT = "telechat-conversations";
const VERSION = 1;
const ROLES = ["user", "assistant"];
const STATUSES = ["done", "length", "stopped", "cutoff", "error"];

/** A conversation as Markdown. `words`: { you, systemPrompt, model }, in the language of the page. */
export function toMarkdown(conversation, words) {
  const parts = [`# ${conversation.title.trim() || "TeleChat"}`];
  if (conversation.systemPrompt.trim()) parts.push(`**${words.systemPrompt}**\n\n${quoted(conversation.systemPrompt)}`);
  for (const { role, text, at, model } of conversation.messages) {
    const name = role === "user" ? words.you : model ? `TeleChat (${model})` : "TeleChat";
    // A question may be anything, "# heading" too: quoted, it cannot change the outline of the file.
    parts.push(`## ${name} · ${timeText(at)}`, role === "user" ? quoted(text) : text.trim());
  }
  return parts.filter(Boolean).join("\n\n") + "\n";
}

const quoted = (text) => text.trim().split("\n").map((line) => `> ${line}`.trimEnd()).join("\n");
const timeText = (at) => new Date(at).toISOString().slice(0, 16).replace("T", " ") + " UTC";

/** Conversations as JSON text that `fromJson` reads; `messages` also has the field names of chat APIs. */
export function toJson(conversations, now) {
  const exported = conversations.map(({ title, isNamed, createdAt, updatedAt, systemPrompt, messages }) => ({
    title, is_named: isNamed, created_at: createdAt, updated_at: updatedAt, system_prompt: systemPrompt,
    messages: messages.map(exportedMessage),
  }));
  return JSON.stringify({ format: FORMAT, version: VERSION, exported_at: now, conversations: exported }, null, 2) + "\n";
}

function exportedMessage({ role, text, at, status, error, stats, model, systemPrompt, vote, voteId, others, place }) {
  return { role, content: text, at, status, error, stats, model, system_prompt: systemPrompt, vote, vote_id: voteId,
    place, others: others?.map(exportedMessage) };
}

/** Conversations out of a file of `toJson`, with identifiers from `newId`; throws an Error that says what is wrong. */
export function fromJson(text, newId) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("not JSON");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error(`no "${FORMAT}" in it`);
  if (file.version !== VERSION) throw new Error(`version ${file.version}, expected ${VERSION}`);
  return file.conversations.map((one, number) => {
    if (!Array.isArray(one?.messages)) throw new Error(`conversations[${number}] has no messages`);
    return {
      id: newId(), title: asText(one.title).slice(0, 120), isNamed: one.is_named === true,
      createdAt: asTime(one.created_at), updatedAt: asTime(one.updated_at), systemPrompt: asText(one.system_prompt),
      messages: one.messages.map((message, index) => importedMessage(message, `conversations[${number}].messages[${index}]`)),
    };
  });
}

const asText = (value) => (typeof value === "string" ? value : "");
const asNumber = (value) => (Number.isFinite(value) ? value : 0);
// Beyond this there are no dates, and to write one down would throw.
const asTime = (value) => (Math.abs(asNumber(value)) <= 8.64e15 ? asNumber(value) : 0);

function importedMessage(message, where) {
  if (!ROLES.includes(message?.role) || typeof message.content !== "string") throw new Error(`${where} has no role and content`);
  const { role, content: text, others } = message;
  const read = { role, text, at: asTime(message.at), status: STATUSES.includes(message.status) ? message.status : "cutoff" };
  if (role === "user") return { ...read, status: "done" };
  for (const [name, key] of [["error", "error"], ["model", "model"], ["systemPrompt", "system_prompt"], ["voteId", "vote_id"]]) {
    if (typeof message[key] === "string") read[name] = message[key];
  }
  if (message.vote === "up" || message.vote === "down") read.vote = message.vote;
  if (message.stats && typeof message.stats === "object") read.stats = importedStats(message.stats);
  if (Array.isArray(others) && others.length) {
    read.others = others.map((other, index) => importedMessage({ ...other, others: undefined }, `${where}.others[${index}]`));
    read.place = Math.min(Math.max(0, Math.trunc(asNumber(message.place))), others.length);
  }
  return read;
}

function importedStats(stats) {
  const names = ["tokens", "tokensPerSecond", "firstSeconds", "promptTokens", "contextTokens"];
  return Object.fromEntries(names.map((name) => [name, Number.isFinite(stats[name]) ? stats[name] : null]));
}

/** A file name for `title`, safe on every system. */
export function fileName(title, extension) {
  const safe = [...title.replace(/[\p{Cc}\p{Cf}\\/:*?"<>|.]+/gu, " ").trim().replace(/\s+/g, "-")].slice(0, 60).join("");
  return `${safe || "telechat"}.${extension}`;
}
