// One answer being written: asks, collects frames, saves now and then, and says how it ended.
// Goes on when another conversation is on screen; knows nothing of the DOM.

import { streamAnswer } from "./chat_client.js";
import { answerStats, finalStatus, requestMessages } from "./conversation.js";
import { requestBody } from "./sampling.js";

const SAVE_EVERY_MS = 1000;

export class AnswerRun {
  /** `onFrame(page)` for each frame; `save()` keeps the conversation. */
  constructor({ conversation, answer, sampling, onFrame, save }) {
    Object.assign(this, { conversation, answer, sampling, onFrame, save });
    this.controller = new AbortController();
    this.settled = [];
    this.tail = "";
  }

  stop() {
    this.controller.abort();
  }

  /** Stream to the end; sets the answer's status, figures and error. Never throws. */
  async finish({ unreachable }) {
    const { conversation, answer } = this;
    // The answer itself is still empty and so is not part of what is sent.
    const body = requestBody({ model: answer.model, messages: requestMessages(conversation), sampling: this.sampling });
    const outcome = { isDone: false, isStopped: false, error: null, finishReason: null };
    const { signal } = this.controller;
    try {
      outcome.isDone = (await streamAnswer(body, { signal, onFrame: (frame) => this.#take(frame, outcome) })).isDone;
    } catch (error) {
      if (signal.aborted) outcome.isStopped = true;
      else outcome.error = error instanceof TypeError ? unreachable : error.message;
    }
    answer.status = finalStatus(outcome);
    if (outcome.error) answer.error = outcome.error;
    if (this.page?.num_pieces) answer.stats = answerStats(this.page, this.usage);
    return answer;
  }

  #take(frame, outcome) {
    const choice = frame.choices?.[0];
    this.answer.text += choice?.delta?.content ?? "";
    outcome.finishReason = choice?.finish_reason ?? outcome.finishReason;
    this.usage = frame.usage ?? this.usage;
    this.page = frame.page;
    this.settled.push(...frame.page.settled);
    this.tail = frame.page.tail;
    this.answer.stats = { ...answerStats(frame.page, this.usage) };
    this.onFrame(frame.page);
    if (performance.now() - (this.savedAt ?? 0) > SAVE_EVERY_MS) {
      this.savedAt = performance.now();
      this.save();
    }
  }
}
