import assert from "node:assert/strict";
import { test } from "node:test";
import * as c from "../../src/telechat/serve/page/static/conversation.js";

const fresh = (systemPrompt = "") => c.newConversation({ id: "1", now: 1, systemPrompt });

function answered(...pairs) {
  const conversation = fresh();
  for (const [question, text] of pairs) {
    c.addQuestion(conversation, question, 2);
    Object.assign(c.addAnswer(conversation, { now: 3, model: "m" }), { text, status: "done" });
  }
  return conversation;
}

test("identifiers are 32 hex digits and differ, without randomUUID", () => {
  assert.match(c.newId(), /^[0-9a-f]{32}$/);
  assert.notEqual(c.newId(), c.newId());
});

test("the title is the first question, cut between characters", () => {
  assert.equal(c.titleFrom("  生抽与\n老抽 "), "生抽与 老抽");
  const long = c.titleFrom("😀".repeat(60));
  assert.equal([...long].length, 40);
  assert.ok(!/[\ud800-\udfff](?![\udc00-\udfff])/.test(long.replace(/[\ud800-\udbff][\udc00-\udfff]/g, "")));
});

test("later questions do not change the title", () => {
  assert.equal(answered(["one", "1"], ["two", "2"]).title, "one");
});

test("a request has the system prompt first, then questions and answers in turn", () => {
  const conversation = Object.assign(answered(["one", "1"]), { systemPrompt: "be kind" });
  c.addQuestion(conversation, "two", 4);
  c.addAnswer(conversation, { now: 5, model: "m" });
  assert.deepEqual(c.requestMessages(conversation), [
    { role: "system", content: "be kind" },
    { role: "user", content: "one" },
    { role: "assistant", content: "1" },
    { role: "user", content: "two" },
  ]);
});

test("a blank system prompt is not sent", () => {
  assert.deepEqual(c.requestMessages(fresh("  \n")), []);
});

test("a question that was never answered is not sent again before the next", () => {
  const conversation = answered(["failed", ""], ["two", "2"]);
  assert.deepEqual(c.requestMessages(conversation).map(({ content }) => content), ["two", "2"]);
});

test("editing drops what followed; the title follows the first question unless it was named", () => {
  const conversation = answered(["one", "1"], ["two", "2"]);
  c.editQuestion(conversation, 2, "zwei", 9);
  assert.deepEqual(conversation.messages.map(({ text }) => text), ["one", "1", "zwei"]);
  assert.equal(conversation.title, "one");
  c.editQuestion(conversation, 0, "eins", 9);
  assert.deepEqual(conversation.messages.map(({ text }) => text), ["eins"]);
  assert.equal(conversation.title, "eins");
  Object.assign(conversation, { title: "mine", isNamed: true });
  c.editQuestion(conversation, 0, "un", 9);
  assert.equal(conversation.title, "mine");
});

test("only a question can be edited", () => {
  assert.throws(() => c.editQuestion(answered(["one", "1"]), 1, "x", 9), /not a question/);
  assert.throws(() => c.editQuestion(fresh(), 0, "x", 9), /not a question/);
});

test("retrying keeps the answers there were, and each can be shown again", () => {
  const conversation = answered(["one", "1"]);
  Object.assign(c.retryAnswer(conversation, { now: 4, model: "m" }), { text: "2", status: "done" });
  Object.assign(c.retryAnswer(conversation, { now: 5, model: "m" }), { text: "3", status: "done" });
  const texts = () => c.versionsOf(conversation.messages.at(-1)).map(({ text }) => text);
  assert.deepEqual(conversation.messages.map(({ text }) => text), ["one", "3"]);
  assert.deepEqual(texts(), ["1", "2", "3"]);
  for (const place of [0, 2, 1]) {
    assert.equal(c.showVersion(conversation, place), conversation.messages.at(-1));
    assert.equal(conversation.messages.at(-1).text, String(place + 1));
    assert.deepEqual(texts(), ["1", "2", "3"]);
  }
  assert.equal(c.showVersion(conversation, 3), null);
  assert.deepEqual(c.requestMessages(conversation).at(-1), { role: "assistant", content: "2" });
});

test("an answer without a word is not kept by a retry; without an answer one is begun", () => {
  const conversation = answered(["one", ""]);
  assert.equal(c.retryAnswer(conversation, { now: 4, model: "m" }).others, undefined);
  assert.equal(conversation.messages.length, 2);
  const fresh = answered();
  c.addQuestion(fresh, "q", 1);
  assert.equal(c.retryAnswer(fresh, { now: 4, model: "m" }).status, "streaming");
});

test("the prompt of an answer is what was sent for it, with the system prompt of that time", () => {
  const conversation = Object.assign(answered(["failed", ""]), { systemPrompt: "old" });
  c.addQuestion(conversation, "two", 4);
  Object.assign(c.addAnswer(conversation, { now: 5, model: "m" }), { text: "2", status: "done" });
  const sent = c.requestMessages({ ...conversation, messages: conversation.messages.slice(0, 3) });
  conversation.systemPrompt = "new";
  assert.deepEqual(c.promptOf(conversation, 3), sent);
  assert.deepEqual(sent, [{ role: "system", content: "old" }, { role: "user", content: "two" }]);
});

test("how an answer ended", () => {
  const end = { isDone: true, isStopped: false, error: null, finishReason: "stop" };
  assert.equal(c.finalStatus(end), "done");
  assert.equal(c.finalStatus({ ...end, finishReason: "length" }), "length");
  assert.equal(c.finalStatus({ ...end, isDone: false }), "cutoff");
  assert.equal(c.finalStatus({ ...end, isDone: false, error: "e" }), "error");
  assert.equal(c.finalStatus({ ...end, isDone: false, isStopped: true }), "stopped");
});

test("an answer left streaming by a closed page was cut off", () => {
  const conversation = answered(["one", "1"]);
  c.addAnswer(conversation, { now: 1, model: "m" });
  assert.deepEqual(c.settleInterrupted(conversation).messages.map(({ status }) => status), ["done", "done", "cutoff"]);
});

test("figures: tokens from the usage when there is one, speed without the first token", () => {
  const page = { num_pieces: 5, writing_seconds: 2, first_piece_seconds: 0.5 };
  const stats = c.answerStats(page, { prompt_tokens: 29, completion_tokens: 21, total_tokens: 50 });
  assert.deepEqual(stats, { tokens: 21, tokensPerSecond: 10, firstSeconds: 0.5, promptTokens: 29, contextTokens: 50 });
  assert.equal(c.answerStats(page, undefined).tokens, 5);
  assert.equal(c.answerStats({ num_pieces: 1, writing_seconds: 0 }, undefined).tokensPerSecond, null);
});

test("search looks at titles and messages, all words, any case", () => {
  const conversation = answered(["Soy sauce", "颜色 and taste"]);
  for (const query of ["", " ", "SOY", "taste soy", "颜色"]) assert.ok(c.matchesQuery(conversation, query), query);
  assert.ok(!c.matchesQuery(conversation, "soy vinegar"));
});
