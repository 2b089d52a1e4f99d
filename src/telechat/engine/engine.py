"""The step loop: admit, run, sample, hand out tokens, free the slots of what ended.

Joins scheduler, runner and sampler for one model. One thread may use it at a time. Knows nothing of threads,
prompts as text, or who asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from telechat.engine.outputs import Keep
from telechat.engine.request import Request, State
from telechat.engine.runner import Runner
from telechat.engine.sampler import Sampled, Sampler
from telechat.engine.sampling_params import SamplingParams
from telechat.engine.scheduler import Scheduler
from telechat.engine.text import TextStream, TokenDecoder
from telechat.errors import ContextLengthError, PromptError, RequestError, TelechatError
from telechat.models import TeleChatModel

log = logging.getLogger(__name__)

# Called with skip_special_tokens; makes the decoder of one answer.
DecoderFactory = Callable[[bool], TokenDecoder]


class Engine:
    """Continuous batching over one model.

    Args:
        model: in eval mode.
        make_decoder: makes the incremental decoder of one answer.
        eos_token_ids: the model's own end tokens.
        max_model_len: most tokens of prompt and answer together.
        max_batch_size: requests that run at once.
        max_prefill_tokens: prompt tokens taken in per step.
    """

    def __init__(
        self,
        model: TeleChatModel,
        make_decoder: DecoderFactory,
        *,
        eos_token_ids: Iterable[int],
        max_model_len: int,
        max_batch_size: int,
        max_prefill_tokens: int,
    ) -> None:
        self._make_decoder = make_decoder
        self._eos_token_ids = frozenset(eos_token_ids)
        self._vocab_size = model.config.vocab_size
        self._device = model.device
        self.max_model_len = max_model_len
        self.scheduler = Scheduler(max_batch_size=max_batch_size, max_prefill_tokens=max_prefill_tokens)
        self.runner = Runner(model, max_batch_size=max_batch_size, max_model_len=max_model_len)
        self._sampler: Sampler | None = None

    @property
    def has_work(self) -> bool:
        """Some request is not finished."""
        return self.scheduler.has_work

    def make_request(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        index: int = 0,
        keep_logits: Keep = None,
        keep_scores: Keep = None,
    ) -> Request:
        """Check a request against the model. Changes nothing, so any thread may call it.

        Raises:
            PromptError: empty, or an id outside the vocabulary.
            ContextLengthError: no room for even one token of an answer.
            RequestError: a parameter that does not fit this model.
        """
        assert params.n == 1, "one request is one answer; use SamplingParams.split"
        prompt = list(prompt_token_ids)
        max_new_tokens = self._max_new_tokens(prompt, params)
        self._check_ids("prompt", prompt)
        self._check_ids("stop_token_ids", params.stop_token_ids)
        self._check_ids("logit_bias", params.logit_bias)
        for name, keep in (("return_logits", keep_logits), ("return_scores", keep_scores)):
            if keep is not None and keep != "all" and (not isinstance(keep, int) or keep < 1):
                raise RequestError(f"{name} is {keep!r}; it must be 'all' or at least 1.", parameter=name)
        eos = frozenset() if params.ignore_eos else self._eos_token_ids
        return Request(
            prompt_token_ids=prompt,
            params=params,
            max_new_tokens=max_new_tokens,
            stop_token_ids=eos.union(params.stop_token_ids),
            text_stream=TextStream(self._make_decoder(params.skip_special_tokens), params.stop),
            index=index,
            keep_logits=keep_logits,
            keep_scores=keep_scores,
        )

    def _max_new_tokens(self, prompt: list[int], params: SamplingParams) -> int:
        if not prompt:
            raise PromptError("The prompt is empty.", hint="Give at least one token.")
        if len(prompt) >= self.max_model_len:
            raise ContextLengthError(
                len(prompt),
                self.max_model_len - 1,
                hint=f"Shorten it; the context of {self.max_model_len} tokens must hold the answer too.",
            )
        room = self.max_model_len - len(prompt)
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

    def _check_ids(self, name: str, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if (
                isinstance(token_id, bool)
                or not isinstance(token_id, int)
                or not 0 <= token_id < self._vocab_size
            ):
                message = f"{name} has token id {token_id!r}; this model has ids 0 to {self._vocab_size - 1}."
                raise PromptError(message) if name == "prompt" else RequestError(message, parameter=name)

    def add(self, request: Request) -> None:
        """Queue a request made by `make_request`."""
        self.scheduler.add(request)

    def cancel(self, request: Request) -> None:
        """End a request now; its slot is free for the next step. Does nothing to a finished one."""
        if not request.is_finished:
            request.end("cancelled")
            self._remove([request])

    def step(self) -> list[Request]:
        """One step: every running request gains a token, waiting ones are admitted. Returns those that took
        part.

        A request whose own text or logits fail ends with `error` set; the others go on.
        """
        step = self.scheduler.schedule()
        requests = list(step.decode + step.prefill)
        if not requests:
            return []
        if step.prefill:
            self._sampler = None
        logits = self.runner.run(step)
        if self._sampler is None:
            self._sampler = Sampler(requests, device=self._device)
        sampled = self._sampler.sample(logits, self.runner.history(len(requests)))
        for row, request in enumerate(requests):
            self._hand_out(request, row, sampled)
        self._remove([request for request in requests if request.finish_reason or request.error])
        return requests

    def _hand_out(self, request: Request, row: int, sampled: Sampled) -> None:
        if row in sampled.broken_rows:
            request.error = RequestError("The model's output is not a number (NaN) for this request.")
            return
        if row in sampled.logprobs:
            request.logprobs.append(sampled.logprobs[row])
        if row in sampled.logits:
            request.kept_logits.append(sampled.logits[row])
        if row in sampled.scores:
            request.kept_scores.append(sampled.scores[row])
        try:
            request.accept(sampled.token_ids[row])
        except TelechatError as error:  # the tokenizer cannot decode this id: no other request's concern
            request.error = error

    def _remove(self, requests: list[Request]) -> None:
        if requests:
            self._sampler = None
            self.runner.move(self.scheduler.remove(requests))

    def fail_running(self, error: Exception) -> list[Request]:
        """After a step that raised: end every running request with `error` and start from an empty cache."""
        failed = list(self.scheduler.running)
        for request in failed:
            request.error, request.state, request.slot = error, State.FINISHED, None
        self.scheduler.running.clear()
        self._sampler = None
        self.runner.reset()
        return failed
