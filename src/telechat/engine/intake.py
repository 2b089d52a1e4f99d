"""Checks requests against one model and makes their records.

Knows the model's limits and how its tokens become text. Changes nothing, so any thread may use it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, get_args

from telechat.engine.grammar import Grammar
from telechat.engine.outputs import Keep, Pooling
from telechat.engine.request import Request
from telechat.engine.sampling_params import SamplingParams, StructuredOutputs
from telechat.engine.text import TextStream, TokenDecoder
from telechat.errors import ContextLengthError, PromptError, RequestError

# Called with skip_special_tokens; makes the decoder of one answer.
DecoderFactory = Callable[[bool], TokenDecoder]


def no_room(num_prompt_tokens: int, max_model_len: int) -> ContextLengthError:
    """The refusal of a prompt that leaves no room for even one token of an answer."""
    return ContextLengthError(
        num_prompt_tokens,
        max_model_len - 1,
        hint=f"Shorten it; the context of {max_model_len} tokens must hold the answer too.",
    )


class Intake:
    """Prompts and parameters in, requests out.

    Args:
        make_decoder: makes the incremental decoder of one answer.
        vocab_size: ids run from 0 to one less.
        eos_token_ids: the model's own end tokens.
        max_model_len: most tokens of prompt and answer together.
        compile_grammar: makes the grammar of one answer; without it there are no structured outputs.
        adapter_number: the number of the adapter with a name; without it there are none.
    """

    def __init__(
        self,
        make_decoder: DecoderFactory,
        *,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        max_model_len: int,
        compile_grammar: Callable[[StructuredOutputs], Grammar] | None = None,
        adapter_number: Callable[[str], int] | None = None,
    ) -> None:
        self._adapter_number = adapter_number
        self._compile_grammar = compile_grammar
        self._make_decoder = make_decoder
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._max_model_len = max_model_len

    @property
    def settings(self) -> dict[str, Any]:
        """What another intake for the same model takes, in another process perhaps."""
        return {
            "vocab_size": self._vocab_size,
            "eos_token_ids": self._eos_token_ids,
            "max_model_len": self._max_model_len,
        }

    def make_requests(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        keep_logits: Keep = None,
        keep_scores: Keep = None,
        priority: int = 0,
        tenant: str = "",
        cache_salt: str = "",
        adapter: str | None = None,
    ) -> list[Request]:
        """One request for each of the `params.n` answers.

        Args:
            priority: lower is sooner.
            tenant: on whose behalf; tenants share the engine evenly.
            cache_salt: only requests with the same one share cached keys.
            adapter: name of the one to answer with.

        Raises:
            PromptError: empty, or an id outside the vocabulary.
            ContextLengthError: no room for even one token of an answer.
            RequestError: a parameter that does not fit this model, or an adapter that there is none of.
        """
        prompt = list(prompt_token_ids)
        max_new_tokens = self.check(prompt, params)
        for name, keep in (("return_logits", keep_logits), ("return_scores", keep_scores)):
            if keep is not None and keep != "all" and (not isinstance(keep, int) or keep < 1):
                raise RequestError(f"{name} is {keep!r}; it must be 'all' or at least 1.", parameter=name)
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise RequestError(f"priority is {priority!r}; it must be an integer.", parameter="priority")
        adapter_number = self._number_of(adapter)
        eos: frozenset[int] = frozenset() if params.ignore_eos else self._eos_token_ids
        return [
            Request(
                prompt_token_ids=prompt,
                params=one,
                max_new_tokens=max_new_tokens,
                stop_token_ids=eos.union(params.stop_token_ids),
                text_stream=TextStream(self._make_decoder(params.skip_special_tokens), params.stop),
                index=index,
                keep_logits=keep_logits,
                keep_scores=keep_scores,
                priority=priority,
                tenant=tenant,
                cache_salt=cache_salt,
                adapter=adapter_number,
                num_prompt_logprobs=one.prompt_logprobs,
                grammar=self._grammar(one),
            )
            for index, one in enumerate(params.split())
        ]

    def check(self, prompt: list[int], params: SamplingParams) -> int:
        """Most tokens that the model can be asked for after this prompt.

        Raises:
            PromptError, ContextLengthError, RequestError: as `make_requests`.
        """
        max_new_tokens = self._max_new_tokens(prompt, params)
        self._check_ids("prompt", prompt)
        self._check_ids("stop_token_ids", params.stop_token_ids)
        self._check_ids("logit_bias", params.logit_bias)
        return max_new_tokens

    def check_grammar(self, asked: StructuredOutputs) -> None:
        """Make sure that an answer to `asked` can begin. May take a while; any thread may call it.

        Raises:
            RequestError: it does not compile, or no token of the vocabulary can begin an answer.
        """
        self._compile(asked).masks()

    def _grammar(self, params: SamplingParams) -> Grammar | None:
        return None if params.structured_outputs is None else self._compile(params.structured_outputs)

    def _compile(self, asked: StructuredOutputs) -> Grammar:
        if self._compile_grammar is None:
            raise RequestError(
                "This engine has no structured outputs.",
                parameter="structured_outputs",
                hint="Its tokenizer does not say which text each token stands for.",
            )
        return self._compile_grammar(asked)

    def _number_of(self, adapter: str | None) -> int | None:
        if adapter is None:
            return None
        if self._adapter_number is None:
            raise RequestError("This engine has no adapters.", parameter="model")
        return self._adapter_number(adapter)

    def make_embedding(
        self,
        prompt_token_ids: Sequence[int],
        pooling: Pooling,
        *,
        tenant: str = "",
        adapter: str | None = None,
    ) -> Request:
        """A request for the vector of a prompt.

        Args:
            tenant, adapter: as for `make_requests`.

        Raises:
            PromptError, RequestError: as `make_requests`; a pooling that there is none of.
        """
        if pooling not in get_args(Pooling):
            raise RequestError(
                f"pooling is {pooling!r}; it must be {' or '.join(get_args(Pooling))}.", parameter="pooling"
            )
        prompt = list(prompt_token_ids)
        if not prompt:
            raise PromptError("The prompt is empty.", hint="Give at least one token.")
        if len(prompt) > self._max_model_len:
            raise ContextLengthError(len(prompt), self._max_model_len, hint="Shorten it.")
        self._check_ids("prompt", prompt)
        return Request(
            prompt_token_ids=prompt,
            params=SamplingParams(),
            max_new_tokens=0,
            stop_token_ids=frozenset(),
            text_stream=TextStream(self._make_decoder(True)),
            pooling=pooling,
            tenant=tenant,
            adapter=self._number_of(adapter),
        )

    def _max_new_tokens(self, prompt: list[int], params: SamplingParams) -> int:
        if not prompt:
            raise PromptError("The prompt is empty.", hint="Give at least one token.")
        if len(prompt) >= self._max_model_len:
            raise no_room(len(prompt), self._max_model_len)
        room = self._max_model_len - len(prompt)
        if params.max_tokens is not None:
            return min(params.max_tokens, room)
        if params.max_total_tokens is None:
            return room
        if len(prompt) >= params.max_total_tokens:
            raise ContextLengthError(
                len(prompt),
                params.max_total_tokens - 1,
                hint="That is max_length (max_total_tokens). Shorten the prompt or set max_tokens instead.",
            )
        return min(params.max_total_tokens - len(prompt), room)

    def _check_ids(self, name: str, token_ids: Collection[int]) -> None:
        # A long prompt is checked while the engine waits, so what is right is seen without a loop in Python.
        are_integers = set(map(type, token_ids)) <= {int}
        if are_integers and 0 <= min(token_ids, default=0) <= max(token_ids, default=0) < self._vocab_size:
            return
        wrong = [token_id for token_id in token_ids if not self._is_token(token_id)]
        if wrong:
            message = f"{name} has token id {wrong[0]!r}; this model has ids 0 to {self._vocab_size - 1}."
            raise PromptError(message) if name == "prompt" else RequestError(message, parameter=name)

    def _is_token(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < self._vocab_size
