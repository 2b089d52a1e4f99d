import assert from "node:assert/strict";
import { test } from "node:test";
import { createEventParser } from "../../src/telechat/serve/page/static/events.js";

const STREAM = ": hello\n\ndata: {\"a\":1}\n\ndata: two\ndata: lines\n\r\nevent: x\ndata:{\"b\":\"\u2028\"}\r\n\r\ndata: [DONE]\n\n";
const EVENTS = ['{"a":1}', "two\nlines", '{"b":"\u2028"}', "[DONE]"];

test("events come out whole for every cut of the stream", () => {
  for (let cut = 0; cut <= STREAM.length; cut += 1) {
    const feed = createEventParser();
    assert.deepEqual([...feed(STREAM.slice(0, cut)), ...feed(STREAM.slice(cut))], EVENTS);
  }
});

test("events come out whole one character at a time", () => {
  const feed = createEventParser();
  assert.deepEqual([...STREAM].flatMap((character) => feed(character)), EVENTS);
});

test("an event without its blank line is not complete", () => {
  assert.deepEqual(createEventParser()("data: half\n"), []);
});
