import assert from "node:assert/strict";
import { test } from "node:test";
import { cleanSampling, parseSampling, readField, requestBody, samplingFields } from "../../src/telechat/serve/page/static/sampling.js";
import { chooseLanguage, languages, setLanguage, t, wordsOf } from "../../src/telechat/serve/page/static/i18n.js";
import { demoQuickQuestions, demoShowcases, quickQuestions, showcases } from "../../src/telechat/serve/page/static/showcases.js";

const field = (name) => samplingFields.find((one) => one.name === name);

test("an empty field means the model's default and is not sent", () => {
  assert.deepEqual(readField(field("temperature"), " "), { value: undefined });
  assert.deepEqual(requestBody({ model: "m", messages: [], sampling: {} }), { model: "m", messages: [], stream: true });
});

test("values inside the limits are read, limits included", () => {
  for (const one of samplingFields) {
    assert.deepEqual(readField(one, String(one.min)), { value: one.min });
    assert.deepEqual(readField(one, String(one.max)), { value: one.max });
  }
});

test("values outside, fractions of whole numbers and words are wrong", () => {
  for (const [name, typed] of [["temperature", "2.1"], ["temperature", "-0.1"], ["top_p", "0"], ["top_k", "1.5"], ["max_tokens", "0"], ["top_p", "x"], ["top_p", "NaN"], ["max_tokens", "Infinity"]]) {
    assert.deepEqual(readField(field(name), typed), { isWrong: true }, `${name} ${typed}`);
  }
});

test("every setting reaches the request", () => {
  const sampling = { temperature: 0, top_p: 0.5, top_k: 7, repetition_penalty: 1.1, max_tokens: 9 };
  assert.deepEqual(requestBody({ model: "m", messages: [], sampling }), { model: "m", messages: [], stream: true, ...sampling });
});

test("what was kept in the browser is not trusted", () => {
  assert.deepEqual(parseSampling('{"temperature": 99, "top_k": 3, "evil": 1}'), { top_k: 3 });
  for (const broken of ["{", "null", "3", null, '"x"']) assert.deepEqual(parseSampling(broken), {});
  assert.deepEqual(cleanSampling({ top_k: "3" }), {});
});

test("the language kept wins, then the browser's, Chinese for everything Chinese", () => {
  assert.equal(chooseLanguage("en", ["zh-CN"]), "en");
  assert.equal(chooseLanguage("xx", ["zh-TW"]), "zh");
  assert.equal(chooseLanguage(null, ["de-DE"]), "en");
  assert.equal(chooseLanguage(null, []), "zh");
});

test("both languages have the same texts with the same places to fill", () => {
  const places = (text) => [...text.matchAll(/\{\w+\}/g)].map(String).sort();
  const [zh, en] = languages.map(wordsOf);
  assert.deepEqual(Object.keys(zh).sort(), Object.keys(en).sort());
  for (const key of Object.keys(zh)) assert.deepEqual(places(zh[key]), places(en[key]), key);
});

test("a text that does not exist is an error", () => {
  setLanguage("en");
  assert.equal(t("contextUsed", { used: 1, limit: 2 }), "Context 1 / 2");
  assert.throws(() => t("noSuchText"), /no text for noSuchText/);
});

test("nine showcases, in both languages", () => {
  assert.equal(showcases.length, 9);
  const cards = [...showcases, ...demoShowcases];
  assert.equal(new Set(cards.map(({ id }) => id)).size, cards.length);
  for (const language of languages) {
    for (const { title, prompt } of cards) assert.ok(title[language] && prompt[language]);
    assert.ok(quickQuestions[language].length && demoQuickQuestions[language].length);
  }
});
