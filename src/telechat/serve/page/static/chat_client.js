// Talking to the page process: the models it serves and streamed answers. Knows nothing of the DOM.

import { createEventParser } from "./events.js";

/** A refusal or a failure that the server explained; `message` is for the user. */
export class ServiceError extends Error {}

/** `{ id, max_model_len? }` of every model; throws when the service does not answer. */
export async function fetchModels() {
  const response = await fetch("/v1/models");
  if (!response.ok) throw new ServiceError(await explain(response));
  return (await response.json()).data ?? [];
}

/**
 * Stream one answer. Calls `onFrame(frame)` for each frame and resolves to `{ isDone }`: false when the
 * stream ended without `[DONE]`, which means it was cut off. Throws ServiceError for an error the server
 * sent, AbortError when `signal` was aborted, TypeError when the server cannot be reached at all.
 */
export async function streamAnswer(body, { signal, onFrame }) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw new ServiceError(await explain(response));
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
