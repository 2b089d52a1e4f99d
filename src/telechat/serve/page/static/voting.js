// Votes on answers. The page's server keeps them as training rows; the answer remembers its own.

import { sendVote } from "./chat_client.js";
import { newId, promptOf } from "./conversation.js";
import { t } from "./i18n.js";

/**
 * Vote `choice` ("up" or "down") on the answer at `index`; the same choice again withdraws it. Resolves to
 * `{ isKept, text }`, `text` being for the user.
 */
export async function castVote(conversation, index, choice) {
  const answer = conversation.messages[index];
  const vote = answer.vote === choice ? null : choice;
  answer.voteId ??= newId();
  try {
    await sendVote({ id: answer.voteId, vote, model: answer.model ?? "", messages: promptOf(conversation, index), answer: answer.text });
  } catch (error) {
    const message = error instanceof TypeError ? t("pageUnreachable") : error.message;
    return { isKept: false, text: t("voteFailed", { message }) };
  }
  answer.vote = vote ?? undefined;
  return { isKept: true, text: t(vote ? "voteKept" : "voteWithdrawn") };
}
