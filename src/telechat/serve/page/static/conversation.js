// What a conversation is and how it changes. Pure: no DOM, no storage, no clock but the one handed in.
//
// Conversation: { id, title, isNamed, createdAt, updatedAt, systemPrompt, messages: [Message] }
// Message:      { role: "user" | "assistant", text, at, status, error?, stats?, model?, systemPrompt?, vote?, voteId?,
//                 others?, place? }
// Status of an answer: "streaming" | "done" | "length" | "stopped" | "cutoff" | "error".
// `others` are the other answers to the same question, oldest first; `place` is where the shown one belongs among them.

const TITLE_LENGTH = 40;

export function newConversation({ id, now, systemPrompt = "" }) {
  return { id, title: "", isNamed: false, createdAt: now, updatedAt: now, systemPrompt, messages: [] };
}

/** 128 random bits in hex; `crypto.randomUUID` is missing on plain http. */
export function newId(random = crypto) {
  return [...random.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function addQuestion(conversation, text, now) {
  conversation.messages.push({ role: "user", text, at: now, status: "done" });
  if (!conversation.isNamed && conversation.messages.length === 1) conversation.title = titleFrom(text);
  conversation.updatedAt = now;
}

/** Append an empty answer and return it. It remembers the system prompt it was asked with. */
export function addAnswer(conversation, { now, model }) {
  const { systemPrompt } = conversation;
  const answer = { role: "assistant", text: "", at: now, status: "streaming", model, systemPrompt };
  conversation.messages.push(answer);
  conversation.updatedAt = now;
  return answer;
}

/** Replace the user message at `index`; everything after it answered the old text, so it goes. */
export function editQuestion(conversation, index, text, now) {
  if (conversation.messages[index]?.role !== "user") throw new Error(`message ${index} is not a question`);
  conversation.messages.length = index;
  const hadOwnName = conversation.isNamed || index > 0;
  conversation.messages.push({ role: "user", text, at: now, status: "done" });
  if (!hadOwnName) conversation.title = titleFrom(text);
  conversation.updatedAt = now;
}

/** All answers to one question, the shown one among them, oldest first. */
export function versionsOf({ others = [], place = others.length, ...shown }) {
  return others.toSpliced(place, 0, shown);
}

/** Put an empty answer in place of the last one, which is kept beside it, and return the empty one. */
export function retryAnswer(conversation, { now, model }) {
  const last = conversation.messages.at(-1);
  const others = last?.role === "assistant" ? versionsOf(conversation.messages.pop()).filter(({ text }) => text) : [];
  const answer = addAnswer(conversation, { now, model });
  return others.length ? Object.assign(answer, { others, place: others.length }) : answer;
}

/** Show another answer to the last question; returns it, or null when there is none at `place`. */
export function showVersion(conversation, place) {
  const versions = versionsOf(conversation.messages.at(-1));
  if (!versions[place]) return null;
  const shown = { ...versions[place], others: versions.toSpliced(place, 1), place };
  conversation.messages[conversation.messages.length - 1] = shown;
  return shown;
}

/** First words of the first question, cut between characters (never inside a surrogate pair). */
export function titleFrom(text) {
  const characters = [...text.trim().replace(/\s+/g, " ")];
  return characters.length <= TITLE_LENGTH ? characters.join("") : characters.slice(0, TITLE_LENGTH - 1).join("") + "…";
}

/**
 * The messages to send. A question whose answer is empty (it failed before the first word) is left out with
 * it, unless it is the one being asked: templates expect questions and answers in turn.
 */
export function requestMessages(conversation) {
  const messages = [];
  if (conversation.systemPrompt.trim()) messages.push({ role: "system", content: conversation.systemPrompt });
  for (const { role, text } of conversation.messages) {
    if (role === "user") {
      if (messages.at(-1)?.role === "user") messages.pop();
      messages.push({ role, content: text });
    } else if (text) {
      messages.push({ role, content: text });
    }
  }
  return messages;
}

/** The messages that the answer at `index` was asked with. */
export function promptOf(conversation, index) {
  const systemPrompt = conversation.messages[index].systemPrompt ?? conversation.systemPrompt;
  return requestMessages({ systemPrompt, messages: conversation.messages.slice(0, index) });
}

/** How an answer ended. `outcome`: { isDone, isStopped, error, finishReason }. */
export function finalStatus({ isDone, isStopped, error, finishReason }) {
  if (isStopped) return "stopped";
  if (error) return "error";
  if (!isDone) return "cutoff";
  return finishReason === "length" ? "length" : "done";
}

/** After a reload nobody writes any more: an answer still "streaming" was cut off. */
export function settleInterrupted(conversation) {
  for (const message of conversation.messages) if (message.status === "streaming") message.status = "cutoff";
  return conversation;
}

/** Numbers to show under an answer; null where the stream did not tell. */
export function answerStats(page, usage) {
  const tokens = usage?.completion_tokens ?? page?.num_pieces ?? 0;
  const seconds = page?.writing_seconds ?? 0;
  return {
    tokens,
    tokensPerSecond: seconds > 0 && tokens > 1 ? (tokens - 1) / seconds : null,
    firstSeconds: page?.first_piece_seconds ?? null,
    promptTokens: usage?.prompt_tokens ?? null,
    contextTokens: usage?.total_tokens ?? null,
  };
}

/** Whether every word of `query` occurs in the title or a message; an empty query matches all. */
export function matchesQuery(conversation, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const text = [conversation.title, ...conversation.messages.map((message) => message.text)].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}
