"""`model.chat(...)`: one question to a transformers model, with the original method's signature and results.

Builds the prompt with `telechat.tokenizer`, generates with transformers, and keeps the history. Differs from
the original where that loses something silently: the last token of an answer cut by length is kept, a
conversation that does not fit is an error, half a character is never shown, and the caller's messages are not
changed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from telechat.errors import ContextLengthError, PromptError
from telechat.hf.streaming import generated_tokens
from telechat.hf.tokenizer import telechat_tokenizer
from telechat.tokenizer import Tokenizer, check_fits
from telechat.tokenizer.official_prompt import official_chat_prompt

# Where neither max_length nor max_new_tokens is set, the original had transformers' default of its time.
_OFFICIAL_MAX_LENGTH = 20


class ChatError(PromptError, ValueError):
    """A question or settings that `chat` cannot take; a ValueError, as in the original."""


class History(list[dict[str, Any]]):
    """The messages of a conversation, oldest first.

    Each is a dict with `role` (`user`, `bot`), `content`, and `input_ids` and `attention_mask` (lists of
    int): the tokens of the content alone.
    """


class ChatMixin:
    """Gives a transformers model the method `chat`."""

    config: Any
    device: torch.device
    generation_config: GenerationConfig | None

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers'."""
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    def chat(
        self,
        tokenizer: Any,
        question: str,
        history: Sequence[Mapping[str, Any]] | None = None,
        stream: bool = False,
        generation_config: GenerationConfig | None = None,
        *,
        official: bool = False,
        **kwargs: Any,
    ) -> tuple[str, History] | Iterator[tuple[str, History]]:
        """Answer a question.

        Args:
            tokenizer: from `AutoTokenizer.from_pretrained`, or `telechat.load_tokenizer`.
            question: the new user message.
            history: earlier messages, `{"role": "user" | "bot", "content": str}`, or the history an earlier
                call returned. Not changed. Models with system prompts take one as the first message.
            stream: return an iterator of (piece of text, history so far) instead.
            generation_config: by default the model's; not changed.
            official: build the prompt exactly as the original does: control strings in messages become
                control tokens, and old messages that do not fit are dropped without a word.
            **kwargs: generation settings for this call; what the generation config does not know goes to
                `generate`.

        Returns:
            The answer and the history including it.

        Raises:
            ChatError: empty question, or no generation config.
            ContextLengthError: the conversation does not fit (unless `official`).
        """
        if not question:
            raise ChatError("The question is empty.", hint="Write a question.")
        base = generation_config if generation_config is not None else self.generation_config
        if base is None:
            raise ChatError("There is no generation config.", hint="Pass generation_config.")
        settings = copy.deepcopy(base)
        extra = settings.update(**kwargs)
        text = telechat_tokenizer(tokenizer)
        check_fits(text, self.config.vocab_size)
        past = _read_history(text, history)
        if official:
            prompt = self._official_prompt(text, question, past, settings)
        else:
            prompt = self._prompt(text, question, past, settings)
        self._complete(settings, text, len(prompt))
        if settings.stop_strings:
            extra.setdefault("tokenizer", tokenizer)
        past.append(_message(text, "user", question))
        if stream:
            return self._stream(text, prompt, past, settings, extra)
        result = self.generate(**self._inputs(prompt), generation_config=settings, **extra)
        sequences = result if isinstance(result, Tensor) else result.sequences
        ids = [i for i in sequences[0, len(prompt) :].tolist() if i not in _end_ids(settings)]
        answer = text.decode(ids, skip_special_tokens=True)
        past.append(_message(text, "bot", answer))
        return answer, past

    def _prompt(self, text: Tokenizer, question: str, past: History, settings: GenerationConfig) -> list[int]:
        """Token ids by the model's own chat format, checked against the context."""
        messages = [{key: message[key] for key in _TEMPLATE_KEYS if key in message} for message in past]
        prompt = text.apply_chat_template([*messages, {"role": "user", "content": question}])
        if settings.max_new_tokens is not None:
            limit = self.config.seq_length - settings.max_new_tokens
            reserved = f"lower max_new_tokens, which reserves {settings.max_new_tokens}"
        else:
            limit = (settings.max_length or self.config.seq_length) - 1
            reserved = "raise max_length" if settings.max_length else "use a model with a longer context"
        if len(prompt) > limit:
            raise ContextLengthError(
                len(prompt), max(0, limit), hint=f"Leave out the oldest messages, or {reserved}."
            )
        return prompt

    def _official_prompt(
        self, text: Tokenizer, question: str, past: History, settings: GenerationConfig
    ) -> list[int]:
        try:
            return official_chat_prompt(
                text,
                question,
                past,
                seq_length=self.config.seq_length,
                max_length=settings.max_length or _OFFICIAL_MAX_LENGTH,
                max_new_tokens=settings.max_new_tokens,
                parse_special=True,
            )
        except PromptError as error:
            raise ChatError(error.message, hint=error.hint) from error

    def _complete(self, settings: GenerationConfig, text: Tokenizer, num_prompt_tokens: int) -> None:
        """Set what `generate` would otherwise take from somewhere else: end and padding ids, the length."""
        if settings.eos_token_id is None:
            settings.eos_token_id = text.special.eos
        if settings.pad_token_id is None:
            settings.pad_token_id = text.special.pad
        if settings.max_new_tokens is None:
            # transformers fills an unset value from the model's own config, where it would beat `max_length`.
            default = self.generation_config.max_new_tokens if self.generation_config else None
            if settings.max_length is None or default is not None:
                limit = settings.max_length or self.config.seq_length
                settings.max_new_tokens = max(1, limit - num_prompt_tokens)

    def _inputs(self, prompt: list[int]) -> dict[str, Tensor]:
        ids = torch.tensor([prompt], device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _stream(
        self,
        text: Tokenizer,
        prompt: list[int],
        past: History,
        settings: GenerationConfig,
        extra: dict[str, Any],
    ) -> Iterator[tuple[str, History]]:
        """Pieces of the answer with the history, whose last message grows; the last piece may be empty."""
        answer = _message(text, "bot", "")
        past.append(answer)
        decoder = text.stream_decoder(skip_special_tokens=True)
        end_ids = _end_ids(settings)
        inputs = self._inputs(prompt)
        for token_id in generated_tokens(self.generate, **inputs, generation_config=settings, **extra):
            if token_id in end_ids:
                continue
            piece = decoder.push(token_id)
            answer["content"] += piece
            answer["input_ids"].append(token_id)
            answer["attention_mask"].append(1)
            if piece:
                yield piece, past
        piece = decoder.finish()
        answer["content"] += piece
        yield piece, past


_TEMPLATE_KEYS = ("role", "content", "tool_calls")


def _read_history(text: Tokenizer, history: Sequence[Mapping[str, Any]] | None) -> History:
    """A copy of the caller's messages, each with its tokens."""
    if history is None:
        return History()
    if isinstance(history, str | bytes | Mapping) or not isinstance(history, Sequence):
        raise ChatError(
            f"history is a {type(history).__name__}; it must be a list of messages.",
            hint='Pass [{"role": "user", "content": "…"}, {"role": "bot", "content": "…"}].',
        )
    past = History()
    for position, message in enumerate(history):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ChatError(f"Message {position} of the history is not a dict with role and content.")
        copied = copy.deepcopy(dict(message))
        if "input_ids" not in copied and isinstance(copied["content"], str):
            copied |= _message(text, copied["role"], copied["content"])
        past.append(copied)
    return past


def _message(text: Tokenizer, role: str, content: str) -> dict[str, Any]:
    ids = text.encode(content) if content else []
    return {"role": role, "content": content, "input_ids": ids, "attention_mask": [1] * len(ids)}


def _end_ids(settings: GenerationConfig) -> frozenset[int]:
    """Ids that end an answer and are no part of it, and padding after it."""
    ends = settings.eos_token_id
    return frozenset([*(ends if isinstance(ends, Sequence) else [ends]), settings.pad_token_id])
