"""Records as tokens with loss masks, in the layout that the chat template has when the model is used.

Text never becomes a control token here. The layout of the original scripts is in `official`.
"""

from __future__ import annotations

from telechat.data.loss_mask import LossOn, answer_mask, token_weights, turn_mask
from telechat.data.official.telechat2 import manual_ids
from telechat.data.records import Conversation, Document, Preference, Record, TokenRow
from telechat.data.rows import RowProblem
from telechat.data.sequences import Encoded
from telechat.errors import PromptError
from telechat.tokenizer import Tokenizer

# Its chat method knows no system text, but it was fine-tuned with one, in the layout of the training script.
_SYSTEM_BY_TRAINING_LAYOUT = "telechat2-115b"


def encode_record(record: Record, tokenizer: Tokenizer, loss_on: LossOn) -> Encoded:
    """Ids and marks of a record.

    Raises:
        RowProblem: it cannot be expressed in the tokenizer's chat format, has ids the vocabulary lacks, or is
            a preference row.
    """
    if isinstance(record, Conversation):
        return _encode_conversation(record, tokenizer, loss_on)
    if isinstance(record, Document):
        return encode_document(record.text, tokenizer)
    if isinstance(record, TokenRow):
        _check_ids(record, tokenizer)
        return Encoded(record.ids, record.learnt, record.weights)
    raise RowProblem("it is a preference row, which is read by preference training only.")


def encode_document(text: str, tokenizer: Tokenizer) -> Encoded:
    """The text and `<_end>`; everything is learnt.

    Raises:
        RowProblem: text that cannot be encoded.
    """
    try:
        ids = [*tokenizer.encode(text), tokenizer.special.eos]
    except PromptError as error:
        raise RowProblem(error.message) from error
    return Encoded(ids, [True] * len(ids))


def conversation_ids(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a finished conversation.

    Raises:
        RowProblem: malformed messages, or something the chat format cannot express.
    """
    messages = conversation.messages
    has_system = bool(messages) and messages[0].get("role") == "system"
    try:
        if has_system and tokenizer.chat_format.name == _SYSTEM_BY_TRAINING_LAYOUT and not conversation.tools:
            return manual_ids(str(messages[0]["content"]), messages[1:], tokenizer)
        return tokenizer.apply_chat_template(
            messages, list(conversation.tools) or None, add_generation_prompt=False
        )
    except PromptError as error:
        raise RowProblem(error.message) from error


def preference_ids(preference: Preference, tokenizer: Tokenizer) -> tuple[Encoded, Encoded | None, int]:
    """Chosen and rejected conversations, the answers alone marked as learnt, and the length of their prompt.

    Raises:
        RowProblem: as `conversation_ids`.
    """
    chosen, prompt_length = _encode_answer(preference, preference.chosen, tokenizer)
    if preference.rejected is None:
        return chosen, None, prompt_length
    rejected, _ = _encode_answer(preference, preference.rejected, tokenizer)
    return chosen, rejected, prompt_length


def _encode_answer(
    preference: Preference, answer: tuple[object, ...], tokenizer: Tokenizer
) -> tuple[Encoded, int]:
    messages = (*preference.prompt, *answer)
    ids = conversation_ids(Conversation(messages, preference.tools), tokenizer)  # type: ignore[arg-type]
    earlier = sum(message["role"] == "assistant" for message in preference.prompt)
    later = sum(message["role"] == "assistant" for message in answer)  # type: ignore[index]
    learnt = answer_mask(ids, tokenizer.special, [0.0] * earlier + [1.0] * later)
    return Encoded(ids, learnt), learnt.index(True)


def _encode_conversation(conversation: Conversation, tokenizer: Tokenizer, loss_on: LossOn) -> Encoded:
    ids = conversation_ids(conversation, tokenizer)
    answer_weights = conversation.answer_weights
    if loss_on == "all":
        learnt = [True] * len(ids)
    elif loss_on == "turns":
        learnt = turn_mask(ids, tokenizer.special)
    else:
        learnt = answer_mask(ids, tokenizer.special, answer_weights)
    if answer_weights is None:
        return Encoded(ids, learnt)
    weights = token_weights(ids, tokenizer.special, answer_weights)
    learnt = [mark and weight > 0 for mark, weight in zip(learnt, weights, strict=True)]
    return Encoded(ids, learnt, weights)


def _check_ids(record: TokenRow, tokenizer: Tokenizer) -> None:
    highest = max(record.ids)
    if highest >= tokenizer.vocab_size:
        raise RowProblem(f"it has the token {highest}; the tokenizer has {tokenizer.vocab_size} tokens.")
