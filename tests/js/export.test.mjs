import assert from "node:assert/strict";
import { test } from "node:test";
import * as c from "../../src/telechat/serve/page/static/conversation.js";
import { fileName, fromJson, toJson, toMarkdown } from "../../src/telechat/serve/page/static/export.js";

const WORDS = { you: "您", systemPrompt: "系统提示词" };

function sample() {
  const conversation = c.newConversation({ id: "1", now: 0, systemPrompt: "be kind" });
  c.addQuestion(conversation, "# not a heading\n\nq", 60_000);
  Object.assign(c.addAnswer(conversation, { now: 61_000, model: "demo" }), { text: "| a |\n|---|\n", status: "done", stats: { tokens: 3, tokensPerSecond: null, firstSeconds: 0.1, promptTokens: 4, contextTokens: 7 } });
  Object.assign(c.retryAnswer(conversation, { now: 62_000, model: "demo" }), { text: "second", status: "stopped", vote: "up", voteId: "f".repeat(32) });
  return conversation;
}

test("Markdown has the title, the system prompt and every message; a question cannot break the outline", () => {
  const text = toMarkdown(sample(), WORDS);
  assert.equal(text, "# # not a heading q\n\n**系统提示词**\n\n> be kind\n\n## 您 · 1970-01-01 00:01 UTC\n\n> # not a heading\n>\n> q\n\n## TeleChat (demo) · 1970-01-01 00:01 UTC\n\nsecond\n");
});

test("JSON there and back is the same conversation under a new identifier", () => {
  const [read] = fromJson(toJson([sample()], 5), () => "2");
  assert.deepEqual(JSON.parse(JSON.stringify({ ...read, id: "1" })), JSON.parse(JSON.stringify(sample())));
  assert.equal(read.id, "2");
});

test("the messages of an export are those of a chat API", () => {
  const { messages } = JSON.parse(toJson([sample()], 5)).conversations[0];
  assert.deepEqual(messages.map(({ role, content }) => [role, content]), [["user", "# not a heading\n\nq"], ["assistant", "second"]]);
});

test("files that are no export are refused with a reason", () => {
  const head = { format: "telechat-conversations", version: 1 };
  for (const [file, reason] of [
    ["{", /not JSON/], ["[]", /no "telechat-conversations"/], ["null", /no "telechat/],
    [JSON.stringify({ ...head, version: 9, conversations: [] }), /version 9/],
    [JSON.stringify({ ...head, conversations: [{}] }), /conversations\[0\] has no messages/],
    [JSON.stringify({ ...head, conversations: [{ messages: [{ role: "tool", content: "x" }] }] }), /messages\[0\] has no role/],
    [JSON.stringify({ ...head, conversations: [{ messages: [{ role: "assistant", content: "x", others: [7] }] }] }), /others\[0\]/],
  ]) assert.throws(() => fromJson(file, c.newId), reason, file);
});

test("what a file says beyond our fields, or in another type, is not taken over", () => {
  const message = { role: "assistant", content: "x", status: "streaming", vote: 1, model: {}, place: 99, stats: { tokens: "7" }, evil: 1, others: [{ role: "assistant", content: "y" }] };
  const file = JSON.stringify({ format: "telechat-conversations", version: 1, conversations: [{ title: 7, messages: [message] }] });
  const [{ title, messages: [read] }] = fromJson(file, c.newId);
  assert.equal(title, "");
  assert.deepEqual(Object.keys(read).sort(), ["at", "others", "place", "role", "stats", "status", "text"]);
  assert.deepEqual([read.status, read.place, read.stats.tokens], ["cutoff", 1, null]);
  assert.equal(c.versionsOf(read).length, 2);
});

test("times that are no dates do not keep a conversation from being exported again", () => {
  const messages = [{ role: "user", content: "x", at: 1e300 }];
  const file = { format: "telechat-conversations", version: 1, conversations: [{ created_at: -1e300, updated_at: 1e16, messages }] };
  const [read] = fromJson(JSON.stringify(file), c.newId);
  assert.match(toMarkdown(read, WORDS), /1970-01-01/);
  assert.deepEqual([read.createdAt, read.updatedAt], [0, 0]);
});

test("file names are safe", () => {
  assert.equal(fileName("生抽与老抽的区别？", "md"), "生抽与老抽的区别？.md");
  assert.equal(fileName("../a\\b:c*\n", "json"), "a-b-c.json");
  assert.equal(fileName(" ... ", "md"), "telechat.md");
  assert.equal([...fileName("😀".repeat(99), "md")].length, 63);
});
