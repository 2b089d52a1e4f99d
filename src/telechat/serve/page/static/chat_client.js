// Talking to the page process: streamed answers, models, tokens, load, votes. Knows nothing of the DOM.

import { createEventParser } from "./events.js";

/** A refusal or a failure that the server explained; `message` is for the user. */
export class ServiceError extends Error {}

/** `{ id, max_model_len? }` of every model; throws when the service does not answer. */
export async function fetchModels() {
  return (await (await ask("/v1/models")).json()).data ?? [];
}

/** What this page offers beyond chatting: `{ feedback }`. */
export const fetchAbout = async () => (await ask("/about")).json();

/** `{ count, tokens, token_strs, max_model_len }` of the prompt that `messages` become. */
export async function fetchTokens(model, messages) {
  return (await ask("/tokenize", { model, messages, return_token_strs: true })).json();
}

/** The service's figures as Prometheus text. */
export const fetchLoad = async () => (await ask("/load")).text();

/** Keep a vote: `{ id, vote: "up" | "down" | null, model, messages, answer }`. */
export const sendVote = async (vote) => void (await ask("/feedback", vote));

/** GET `path`, or POST `body` to it; throws ServiceError for a refusal, TypeError when nobody answers. */
async function ask(path, body, signal) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  const response = await fetch(path, body === undefined ? {} : post);
  if (!response.ok) throw new ServiceError(await explain(response));
  return response;
}

/**
 * Stream one answer. Calls `onFrame(frame)` for each frame and resolves to `{ isDone }`: false when the
 * stream ended without `[DONE]`, which means it was cut off. Throws ServiceError for an error the server
 * sent, AbortError when `signal` was aborted, TypeError when the server cannot be reached at all.
 */
export async function streamAnswer(body, { signal, onFrame }) {
  const response = await ask("/v1/chat/completions", body, signal);
  const feed = createEventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      return { isDone: false }; // the connection broke: what came so far stays
    }
    if (part.done) return { isDone: false };
    for (const data of feed(part.value)) {
      if (data === "[DONE]") return { isDone: true };
      const frame = JSON.parse(data);
      if (frame.error) throw new ServiceError(frame.error.message ?? "?");
      onFrame(frame);
    }
  }
}

async function explain(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `HTTP ${response.status}`;
  }
}
