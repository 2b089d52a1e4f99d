"""From logits to the next tokens of each request.

Rows are independent: each has its own parameters and its own random numbers, which follow from seed and
position, so neither the neighbours in the batch nor a second computation change a row's choice. A request
with k draft tokens owns k + 1 rows; each is sampled as if the drafts before it were the answer, and the
choices count as far as they equal the drafts. That is exact: every token that counts is the model's own
choice at its place.
Knows nothing of models, text or scheduling.
Shapes: B requests, L rows of logits, V vocabulary, N rows of a subset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, islice
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from telechat.device import HostCopy
from telechat.engine.draws import Draws, streams, uniforms
from telechat.engine.logprobs import token_logprobs
from telechat.engine.outputs import Keep, TokenLogprob
from telechat.engine.penalties import Adjustment, Mask, adjust
from telechat.engine.request import Request
from telechat.engine.sampling_state import SamplingState
from telechat.engine.truncation import choose, keep_mask
from telechat.errors import RequestError
from telechat.ops.cpu import library
from telechat.ops.cpu.context import Context, shared_context
from telechat.ops.cpu.sample import ROW, RowSampler, obstacle

NOT_A_NUMBER = "The model's output is not a number (NaN) for this request."

Kept = Tensor | dict[int, float]
Rows = npt.NDArray[np.void]
# Applies adjustments to logits [L, V] in place and chooses a token per row, -1 where there is none.
Choose = Callable[[Tensor, Sequence[Adjustment], Rows], list[int]]
# Told the chosen tokens, int64 [L], before the host knows them.
Ahead = Callable[[HostCopy], None]


class Sampled(NamedTuple):
    """What one request gained.

    Attributes:
        token_ids: drafts that were right, then one token more; none where there is an error.
        error: why there is no token for this request.
        logprobs, logits, scores: one per token, where the request asked for them.
    """

    token_ids: list[int]
    error: RequestError | None = None
    logprobs: Sequence[TokenLogprob] = ()
    logits: Sequence[Kept] = ()
    scores: Sequence[Kept] = ()


class Sampler:
    """Samples for one batch composition; building another when requests join or leave is cheap.

    Args:
        requests: in the order of their logits.
        device: where the logits are.
        choose: the form to use; by default C where the kernels work on this device, else torch.
    """

    def __init__(
        self, requests: Sequence[Request], *, device: torch.device, choose: Choose | None = None
    ) -> None:
        self.requests = tuple(requests)
        self._choose = choose or default_choose(device)
        params = [request.params for request in requests]
        states = []
        for request in requests:
            if request.sampling is None:
                request.sampling = SamplingState(request)
            states.append(request.sampling)
        self._states: list[SamplingState] = states
        self._rows = np.zeros(len(params), ROW)
        for name, values in (
            ("temperature", [p.temperature for p in params]),
            ("top_k", [p.top_k for p in params]),
            ("top_p", [p.top_p for p in params]),
            ("min_p", [p.min_p for p in params]),
            ("repetition", [p.repetition_penalty for p in params]),
            ("presence", [p.presence_penalty for p in params]),
            ("frequency", [p.frequency_penalty for p in params]),
        ):
            self._rows[name] = values
        self._uniforms = self._rows["uniform"]  # a view
        self._any_drawn = bool(self._rows["temperature"].any())
        self._draws = Draws(streams(state.seed for state in states))
        self._adjusted = [row for row, state in enumerate(states) if state.is_adjusted]
        # The same objects in every step, so that nothing need be looked up again.
        self._steady = [Adjustment(row, states[row].history, None, None) for row in self._adjusted]
        self._histories = [(requests[one.row], one.history) for one in self._steady if one.history]
        self._is_steady = all(state.is_steady for state in states)
        self._reporting = [
            row
            for row, request in enumerate(requests)
            if request.params.logprobs is not None
            or request.keep_logits is not None
            or request.keep_scores is not None
        ]

    def sample(self, logits_LV: Tensor, *, ahead: Ahead | None = None) -> list[Sampled]:
        """Choose for every request. Changes `logits_LV` (fp32).

        Args:
            ahead: called when the choice is under way on the device, so that work can be queued behind it
                before anybody waits; the form in torch is then used.
        """
        has_drafts = len(logits_LV) > len(self.requests)
        if has_drafts or ahead is not None or self._reporting or not self._is_steady:
            return self._sample_any(logits_LV, ahead)
        if self._any_drawn:
            self._uniforms[:] = self._draws.at([len(request.token_ids) for request in self.requests])
        for request, history in self._histories:
            history.catch_up(request.token_ids)
        chosen = self._choose(logits_LV, self._steady, self._rows)
        return [Sampled([token_id]) if token_id >= 0 else _nothing() for token_id in chosen]

    @torch.inference_mode()
    def _sample_any(self, logits_LV: Tensor, ahead: Ahead | None) -> list[Sampled]:
        """`sample` with all there is: drafts, reports, grammars, biases."""
        counts = [1 + len(request.draft_token_ids) for request in self.requests]
        assert len(logits_LV) == sum(counts)
        has_drafts = len(logits_LV) > len(counts)
        starts = list(accumulate(counts, initial=0))
        rows = self._rows.repeat(counts) if has_drafts else self._rows
        if self._any_drawn:
            self._fill_draws(rows, counts if has_drafts else None)
        reported = [row for index in self._reporting for row in range(starts[index], starts[index + 1])]
        raw_NV = logits_LV[torch.tensor(reported, device=logits_LV.device)] if reported else None
        errors: dict[int, RequestError] = {}
        adjustments: list[Adjustment] = []
        for index in self._adjusted:
            drafts = self.requests[index].draft_token_ids
            try:
                adjustments += self._adjustments(index, starts[index], drafts)
            except RequestError as refusal:
                errors[index] = refusal
                # Its rows are computed with the others all the same, and must not keep an old mask.
                adjustments += [_unadjusted(starts[index] + offset) for offset in range(len(drafts) + 1)]
        if ahead is None:
            chosen = self._choose(logits_LV, adjustments, rows)
        else:
            under_way = HostCopy(_choose_on_device(logits_LV, adjustments, rows))
            ahead(under_way)
            chosen = under_way.values().tolist()
        if has_drafts:
            sampled = [
                _verified(chosen[start : start + count], request.draft_token_ids)
                for request, start, count in zip(self.requests, starts, counts, strict=False)
            ]
        else:
            sampled = [Sampled([token_id]) if token_id >= 0 else _nothing() for token_id in chosen]
        for index, error in errors.items():
            sampled[index] = Sampled([], error)
        if raw_NV is not None:
            self._report(raw_NV, logits_LV, starts, sampled)
        return sampled

    @torch.inference_mode()
    def guess(self, logits_BV: Tensor, num_drafts: int) -> list[int]:
        """A token per request for the place behind its first `num_drafts` drafts, by another model's logits.

        Drawn as the request's own token at that place will be, so that like distributions give like tokens.
        Changes `logits_BV` (fp32).
        """
        rows = self._rows
        if self._any_drawn:
            positions = np.array([len(request.token_ids) + num_drafts for request in self.requests])
            rows["uniform"] = uniforms(self._draws.streams, positions)
        adjustments = []
        for index in self._adjusted:
            drafts = self.requests[index].draft_token_ids[:num_drafts]
            try:
                adjustments.append(self._adjustments(index, index - num_drafts, drafts)[-1])
            except RequestError:  # the request's own step will say so
                adjustments.append(_unadjusted(index))
        # A model that does not know guesses all the same; the token is checked like any other.
        return [max(token_id, 0) for token_id in self._choose(logits_BV, adjustments, rows)]

    def _fill_draws(self, rows: Rows, counts: Sequence[int] | None) -> None:
        positions = np.array([len(request.token_ids) for request in self.requests])
        streams_L = self._draws.streams
        if counts is not None:
            streams_L = streams_L.repeat(counts)
            positions = positions.repeat(counts) + np.concatenate([np.arange(count) for count in counts])
        rows["uniform"] = uniforms(streams_L, positions)

    def _adjustments(self, index: int, start: int, drafts: Sequence[int]) -> list[Adjustment]:
        """What changes the rows of one request; each of them has one more of the drafts behind it."""
        request, state = self.requests[index], self._states[index]
        num_tokens = len(request.token_ids)
        history = state.history
        if history is not None:
            history.catch_up(request.token_ids)
        masks: Sequence[Mask | None] = [None]
        if state.grammar is not None:
            state.grammar.catch_up(request.token_ids)
            masks = state.grammar.masks(drafts)
        adjustments = [Adjustment(start, history, state.biases(num_tokens), masks[0])]
        for offset in range(1, len(drafts) + 1):
            longer = None if history is None else history.followed_by(drafts[:offset])
            # Behind a draft that the grammar forbids there is no mask; such a row is never reached.
            mask = masks[offset] if offset < len(masks) else None
            adjustments.append(Adjustment(start + offset, longer, state.biases(num_tokens + offset), mask))
        return adjustments

    def _report(
        self, raw_NV: Tensor, scores_LV: Tensor, starts: Sequence[int], sampled: list[Sampled]
    ) -> None:
        """Fill in what requests asked to see of the rows behind their tokens."""
        rows: list[int] = []
        num_top: list[int] = []
        first = 0
        for index in self._reporting:
            request, result = self.requests[index], sampled[index]
            mine = range(first, first + len(result.token_ids))
            first += starts[index + 1] - starts[index]
            if request.params.logprobs is not None:
                rows += mine
                num_top += [request.params.logprobs] * len(mine)
            if request.keep_logits is not None:
                result = result._replace(logits=[_kept(raw_NV[row], request.keep_logits) for row in mine])
            if request.keep_scores is not None:
                scores = [
                    _kept(_final_scores(scores_LV[starts[index] + offset], request), request.keep_scores)
                    for offset in range(len(mine))
                ]
                result = result._replace(scores=scores)
            sampled[index] = result
        wanting = [index for index in self._reporting if self.requests[index].params.logprobs is not None]
        token_ids = [token_id for index in wanting for token_id in sampled[index].token_ids]
        logprobs = iter(token_logprobs(raw_NV[rows], token_ids, num_top))
        for index in wanting:
            reported = list(islice(logprobs, len(sampled[index].token_ids)))
            sampled[index] = sampled[index]._replace(logprobs=reported)


def _unadjusted(row: int) -> Adjustment:
    return Adjustment(row, None, None, None)


def _verified(chosen: Sequence[int], drafts: Sequence[int]) -> Sampled:
    """The choices as far as they continue the answer: up to the first that differs from its draft."""
    num_right = 0
    while num_right < len(drafts) and chosen[num_right] == drafts[num_right]:
        num_right += 1
    token_ids = list(chosen[: num_right + 1])
    if token_ids[-1] < 0:  # a broken row behind right drafts shows again, first, in the next step
        token_ids.pop()
    return Sampled(token_ids) if token_ids else _nothing()


def _nothing() -> Sampled:
    return Sampled([], RequestError(NOT_A_NUMBER))


def default_choose(device: torch.device) -> Choose:
    """The fastest form for logits on `device`."""
    if obstacle(torch.empty(1, 1, device=device)) is None and library.obstacle() is None:
        return CompiledChoose(shared_context())
    return choose_in_torch


@torch.inference_mode()
def choose_in_torch(logits_LV: Tensor, adjustments: Sequence[Adjustment], rows: Rows) -> list[int]:
    """The plain form, for any device."""
    chosen: list[int] = _choose_on_device(logits_LV, adjustments, rows).tolist()
    return chosen


def _choose_on_device(logits_LV: Tensor, adjustments: Sequence[Adjustment], rows: Rows) -> Tensor:
    adjust(logits_LV, adjustments, rows)
    return choose(logits_LV, rows)


class CompiledChoose:
    """The form in C.

    Args:
        context: threads and level.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._sampler: RowSampler | None = None
        self._filled: Sequence[Adjustment] | None = None

    def __call__(self, logits_LV: Tensor, adjustments: Sequence[Adjustment], rows: Rows) -> list[int]:
        sampler = self._sampler
        if sampler is None or sampler.rows is not rows:
            sampler = self._sampler = RowSampler(self.context, rows)
            self._filled = None
        if adjustments is not self._filled:
            if adjustments:
                _fill_adjustments(adjustments, rows)
            self._filled = adjustments
        return sampler(logits_LV)


def _fill_adjustments(adjustments: Sequence[Adjustment], rows: Rows) -> None:
    """Tell C where histories, biases and masks are.

    Column by column, and what no request has in one stroke: single fields of a numpy record cost more than
    all the rest of a row.
    """
    index, histories, biases, masks = zip(*adjustments, strict=True)
    changed = slice(None) if len(index) == len(rows) else np.array(index)

    def fill(owners: Sequence[object], values: Mapping[str, Callable[[Any], int]]) -> None:
        has_any = any(owner is not None for owner in owners)
        for name, value in values.items():
            column = [0 if owner is None else value(owner) for owner in owners] if has_any else 0
            rows[name][changed] = column

    fill(histories, _HISTORY_COLUMNS)
    fill(biases, _BIAS_COLUMNS)
    fill(masks, _MASK_COLUMNS)


_HISTORY_COLUMNS = {"history_at": attrgetter("at")}
_BIAS_COLUMNS: dict[str, Callable[[Any], int]] = {
    "num_biases": lambda biases: len(biases.ids),
    "bias_ids_at": attrgetter("ids_at"),
    "biases_at": attrgetter("values_at"),
}
_MASK_COLUMNS: dict[str, Callable[[Any], int]] = {"allowed_at": lambda mask: mask.ctypes.data}


def _final_scores(scores_V: Tensor, request: Request) -> Tensor:
    """What the token was drawn from, as logits: divided by the temperature, minus infinity where cut."""
    params = request.params
    scores = scores_V.clone()
    if not params.is_greedy:
        scores /= params.temperature
        kept = keep_mask(scores, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)
        scores[~kept] = -torch.inf
    return scores


def _kept(values_V: Tensor, keep: Keep) -> Kept:
    if keep == "all":
        return values_V.to("cpu", copy=True)
    assert isinstance(keep, int)
    best = values_V.topk(min(keep, len(values_V)))
    return dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
