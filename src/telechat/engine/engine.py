"""The step loop: schedule, compute, sample, hand out tokens, free the blocks of what ended.

Joins scheduler, runner and sampler for one model. One thread may use it at a time. Knows nothing of threads,
prompts as text, or who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from telechat.engine.adapters import AdapterTable
from telechat.engine.blocks import BlockAllocator
from telechat.engine.logprobs import token_logprobs
from telechat.engine.outputs import EngineStats
from telechat.engine.request import Request
from telechat.engine.rope import RopeRule
from telechat.engine.runner import Runner
from telechat.engine.sampler import NOT_A_NUMBER, Ahead, Sampled, Sampler
from telechat.engine.scheduler import Scheduler
from telechat.engine.speculation import Proposer
from telechat.engine.work import Work
from telechat.errors import RequestError, TelechatError
from telechat.models.paged import Executor, RunsAhead


class Engine:
    """Continuous batching over one model.

    Args:
        executor: the model; its cache is made here.
        num_blocks, block_size: of the cache, which must hold any single request to its end.
        max_batch_size: requests that run at once.
        max_batch_tokens: tokens computed in one step.
        prefix_caching: requests that begin alike share the blocks of what they have in common.
        proposer: guesses tokens for the model to check, or None.
        adapters: what requests with an adapter have it from; None takes no such requests.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        num_blocks: int,
        block_size: int,
        max_batch_size: int,
        max_batch_tokens: int,
        prefix_caching: bool = True,
        proposer: Proposer | None = None,
        adapters: AdapterTable | None = None,
    ) -> None:
        self.executor = executor
        self._adapters = adapters
        self._proposer = proposer
        self._ahead: Ahead | None = None
        if proposer is None and isinstance(executor, RunsAhead) and executor.can_run_ahead:
            self._ahead = executor.run_ahead
        self.scheduler = Scheduler(
            BlockAllocator(num_blocks, block_size, prefix_caching=prefix_caching),
            RopeRule(executor.rope_mode, executor.config.rope, executor.static_length),
            max_batch_size=max_batch_size,
            max_batch_tokens=max_batch_tokens,
        )
        self.runner = Runner(executor, num_blocks=num_blocks, block_size=block_size)
        self._sampler: Sampler | None = None
        self.num_generated_tokens = 0
        self.num_draft_tokens = 0
        self.num_accepted_drafts = 0

    @property
    def has_work(self) -> bool:
        """Some request is not finished."""
        return self.scheduler.has_work

    @property
    def num_steps(self) -> int:
        """Steps done so far."""
        return self.scheduler.counters.num_steps

    def add(self, request: Request) -> None:
        """Queue a request made by `Intake`.

        Raises:
            RequestError: its adapter has been unloaded since.
        """
        number = request.adapter
        if number is not None and (self._adapters is None or not self._adapters.holds(number)):
            raise RequestError("The adapter of this request has been unloaded.", parameter="model")
        self.scheduler.add(request)

    def cancel(self, request: Request) -> None:
        """End a request now; its blocks are free for the next step. Does nothing to a finished one."""
        if not request.is_finished:
            request.end("cancelled")
            self.scheduler.finish(request)
            self._forget_adapters()

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """As `AdapterTable.load`.

        Raises:
            ConfigError, CheckpointError: it cannot be used.
        """
        assert self._adapters is not None, "an engine without adapters was asked to load one"
        self._forget_adapters()
        self._adapters.load(name, folder)

    def unload_adapter(self, name: str) -> None:
        """As `AdapterTable.unload`; requests that have begun keep it to their end.

        Raises:
            RequestError: there is none.
        """
        assert self._adapters is not None, "an engine without adapters was asked to unload one"
        self._adapters.unload(name)
        self._forget_adapters()

    def _forget_adapters(self) -> None:
        """Give unloaded adapters back as soon as nobody needs them."""
        if self._adapters is not None and self._adapters.has_leaving:
            scheduler = self.scheduler
            self._adapters.forget_unused(r.adapter for r in (*scheduler.running, *scheduler.waiting))

    def step(self) -> list[Request]:
        """One step: running requests gain a token, prompts are worked on. Returns those that took part.

        A request whose own text or logits fail ends with `error` set; the others go on.
        """
        if self._proposer is not None:
            self._proposer.propose(self.scheduler.decoding())
        step = self.scheduler.schedule()
        if not step.work:
            return []
        try:
            if self._proposer is not None:
                self._proposer.fill(step.work)
            generating = [work for work in step.work if work.request.pooling is None]
            if generating:
                self._generate(generating)
            if len(generating) < len(step.work):
                self._pool([work for work in step.work if work.request.pooling is not None])
            if self._proposer is not None:
                self._proposer.follow(step.work)
        except BaseException:
            # Blocks were published that this step was to fill.
            self.scheduler.blocks.forget_names()
            raise
        self.scheduler.commit(step)
        requests = list(dict.fromkeys(work.request for work in step.work))
        for request in requests:
            is_pooled = request.pooling is not None and request.num_computed_tokens == request.num_tokens
            if request.finish_reason or request.error or is_pooled:
                self.scheduler.finish(request)
        self._forget_adapters()
        return requests

    def stats(self) -> EngineStats:
        """Counts since the engine was made, and how its cache stands."""
        scheduler = self.scheduler
        counters, blocks = scheduler.counters, scheduler.blocks
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_blocks=blocks.num_blocks,
            num_free_blocks=blocks.num_free,
            num_cached_blocks=blocks.num_cached,
            block_size=blocks.block_size,
            num_steps=counters.num_steps,
            num_computed_tokens=counters.num_computed_tokens,
            num_generated_tokens=self.num_generated_tokens,
            num_prefix_hit_tokens=counters.num_prefix_hit_tokens,
            num_preemptions=counters.num_preemptions,
            num_draft_tokens=self.num_draft_tokens,
            num_accepted_drafts=self.num_accepted_drafts,
        )

    def fail_running(self, error: Exception) -> list[Request]:
        """After a step that raised: end every running request with `error`; waiting ones go on."""
        failed = self.scheduler.abandon_running()
        for request in failed:
            request.error = error
        return failed

    def _generate(self, work: Sequence[Work]) -> None:
        """Compute, sample and hand out the next tokens of those whose known tokens are all done."""
        logits_LV = self.runner.logits(work)
        if any(one.request.num_prompt_logprobs is not None for one in work):
            work, logits_LV = self._report_prompts(work, logits_LV)
        requests = list(dict.fromkeys(one.request for one in work if one.num_logits))
        if not requests:
            return
        if self._sampler is None or self._sampler.requests != tuple(requests):
            self._sampler = Sampler(requests, device=logits_LV.device)
        ahead = self._ahead if self._next_step_is_like(requests) else None
        for request, sampled in zip(requests, self._sampler.sample(logits_LV, ahead=ahead), strict=True):
            self._hand_out(request, sampled)

    def _next_step_is_like(self, requests: Sequence[Request]) -> bool:
        """Unless one of them ends, the next step will give each of these requests a token, and do no more."""
        return (
            self._ahead is not None
            and not self.scheduler.waiting
            and len(self.scheduler.running) == len(requests)
            and any(len(request.token_ids) + 1 < request.max_new_tokens for request in requests)
        )

    def _hand_out(self, request: Request, sampled: Sampled) -> None:
        request.error = sampled.error
        num_before = len(request.token_ids)
        try:
            for token_id in sampled.token_ids:
                request.accept(token_id)
                if request.finish_reason:
                    break
        except TelechatError as error:  # the tokenizer cannot decode this id: no other request's concern
            request.error = error
        num_gained = len(request.token_ids) - num_before
        request.logprobs += sampled.logprobs[:num_gained]
        request.kept_logits += sampled.logits[:num_gained]
        request.kept_scores += sampled.scores[:num_gained]
        self.num_generated_tokens += num_gained
        self.num_draft_tokens += len(request.draft_token_ids)
        self.num_accepted_drafts += max(len(sampled.token_ids) - 1, 0)

    def _report_prompts(self, work: Sequence[Work], logits_LV: Tensor) -> tuple[list[Work], Tensor]:
        """Report on prompts where that was asked for; returns the work and the rows that are for sampling."""
        rest: list[Work] = []
        rows: list[int] = []
        first = 0
        for one in work:
            stop = first + one.num_logits
            if one.request.needs_prompt_rows:
                self._report_prompt(one, logits_LV[first:stop])
                is_complete = one.stop == one.request.num_tokens and not one.request.error
                one = one._replace(num_logits=int(is_complete))
            rest.append(one)
            rows += range(stop - one.num_logits, stop)
            first = stop
        return rest, logits_LV[torch.tensor(rows, dtype=torch.int64, device=logits_LV.device)]

    @staticmethod
    def _report_prompt(work: Work, logits_LV: Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow the computed ones."""
        request, reported = work.request, work.request.prompt_logprobs
        assert request.num_prompt_logprobs is not None
        if not reported:
            reported.append(None)
        following = request.prompt_token_ids[len(reported) : work.stop + 1]
        first = len(reported) - 1 - work.start
        rows_NV = logits_LV[first : first + len(following)]
        reported += token_logprobs(rows_NV, following, [request.num_prompt_logprobs] * len(following))
        if bool(rows_NV.isnan().any()):
            request.error = RequestError(NOT_A_NUMBER)

    def _pool(self, work: Sequence[Work]) -> None:
        """Add up hidden states, or keep the last one, of prompts to be embedded."""
        hidden_LD = self.runner.hidden_states(work)
        first = 0
        for one in work:
            request, rows = one.request, hidden_LD[first : first + one.num_logits]
            first += one.num_logits
            if request.pooling == "mean":
                # fp64, so that the pieces a prompt was computed in do not show.
                total = rows.double().sum(0)
                request.pooled = total if request.pooled is None else request.pooled + total
            elif len(rows):
                request.pooled = rows[-1].clone()
            if len(rows) and bool(rows.isnan().any()):
                request.error = RequestError(NOT_A_NUMBER)
