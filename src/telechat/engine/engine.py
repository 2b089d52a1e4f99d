"""The step loop: admit, run, sample, hand out tokens, free the slots of what ended.

Joins scheduler, runner and sampler for one model. One thread may use it at a time. Knows nothing of threads,
prompts as text, or who asks.
"""

from __future__ import annotations

import logging

from telechat.engine.request import Request, State
from telechat.engine.runner import Runner
from telechat.engine.sampler import Sampled, Sampler
from telechat.engine.scheduler import Scheduler
from telechat.errors import RequestError, TelechatError
from telechat.models import TeleChatModel

log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one model.

    Args:
        model: in eval mode.
        max_model_len: most tokens of prompt and answer together.
        max_batch_size: requests that run at once.
        max_prefill_tokens: prompt tokens taken in per step.
    """

    def __init__(
        self,
        model: TeleChatModel,
        *,
        max_model_len: int,
        max_batch_size: int,
        max_prefill_tokens: int,
    ) -> None:
        self._device = model.device
        self.scheduler = Scheduler(max_batch_size=max_batch_size, max_prefill_tokens=max_prefill_tokens)
        self.runner = Runner(model, max_batch_size=max_batch_size, max_model_len=max_model_len)
        self._sampler: Sampler | None = None

    @property
    def has_work(self) -> bool:
        """Some request is not finished."""
        return self.scheduler.has_work

    def add(self, request: Request) -> None:
        """Queue a request made by `Intake`."""
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
