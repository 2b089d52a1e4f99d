"""Runs the model for the requests of one step and owns their cached keys and values.

Knows the model and its cache; knows nothing of queues, sampling or text. The cache starts small and doubles
when a row or a longer sequence needs room, so that a short chat does not pay for the longest one allowed.
Shapes: B requests of the step, S padded prompt length, T longest sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from telechat.engine.history import History
from telechat.engine.request import Request
from telechat.engine.scheduler import Move, Step
from telechat.models import KVCache, TeleChatModel

_FIRST_LENGTH = 256
# Prompts of one padded call: the shortest must fill at least this share of the longest.
_MIN_FILL = 0.75


class Runner:
    """A model and the cache rows of the running requests.

    Args:
        model: in eval mode.
        max_batch_size: rows that may be in use at once.
        max_model_len: tokens that one row may hold.
    """

    def __init__(self, model: TeleChatModel, *, max_batch_size: int, max_model_len: int) -> None:
        self.model = model
        self.max_batch_size = max_batch_size
        self.max_model_len = max_model_len
        self.cache = self._empty_cache()

    def _empty_cache(self) -> KVCache:
        return KVCache(
            self.model.config,
            0,
            min(_FIRST_LENGTH, self.max_model_len),
            dtype=self.model.dtype,
            device=self.model.device,
        )

    @torch.inference_mode()
    def run(self, step: Step) -> Tensor:
        """Logits [B, V] of the next token of each request: those decoding first, then those just admitted."""
        num_rows = len(step.decode) + len(step.prefill)
        longest = max(
            max((length + 1 for length in self.cache.lengths[: len(step.decode)]), default=0),
            max((len(request.prompt_token_ids) for request in step.prefill), default=0),
        )
        self._make_room(num_rows, longest)
        parts = [self._decode(step.decode)] if step.decode else []
        start = len(step.decode)
        for group in self._prefill_groups(step.prefill):
            parts.append(self._prefill(start + group.start, step.prefill[group]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, requests: Sequence[Request]) -> Tensor:
        last = torch.tensor([request.last_token_id for request in requests], device=self.model.device)
        logits: Tensor = self.model(last[:, None], cache=self.cache)
        return logits[:, 0]

    def _prefill_groups(self, requests: Sequence[Request]) -> list[slice]:
        """Which of the admitted requests, by growing length, share a padded call."""
        lengths = [len(request.prompt_token_ids) for request in requests]
        if not lengths:
            return []
        is_one_table = self.model.rope_mode == "static" or lengths[-1] <= self.model.config.training_seqlen
        # Where the rotary table depends on the length, padding would change it.
        return groups_by_length(lengths) if is_one_table else [slice(i, i + 1) for i in range(len(lengths))]

    def _prefill(self, first_slot: int, requests: Sequence[Request]) -> Tensor:
        """Prompts padded on the right, where causal attention never looks at the padding."""
        prompts = [request.prompt_token_ids for request in requests]
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        padded = torch.tensor([prompt + prompt[:1] * (longest - len(prompt)) for prompt in prompts])
        view = self.cache.rows(first_slot, first_slot + len(requests))
        view.lengths = [0] * len(requests)
        hidden = self.model.hidden_states(padded.to(self.model.device), cache=view)
        self.cache.lengths[first_slot : first_slot + len(requests)] = lengths
        ends = torch.tensor(lengths, device=hidden.device) - 1
        last_hidden = hidden[torch.arange(len(requests), device=hidden.device), ends]
        return F.linear(last_hidden, self.model.output_weight)

    def history(self, num_rows: int) -> History:
        """The tokens of the first `num_rows` rows, after `run`."""
        lengths = self.cache.lengths[:num_rows]
        token_ids = self.cache.token_ids[:num_rows, : max(lengths)]
        return History(token_ids, torch.tensor(lengths, device=token_ids.device))

    @torch.inference_mode()
    def move(self, moves: Sequence[Move]) -> None:
        """Let cached rows follow their requests."""
        for move in moves:
            self.cache.move(move.source, move.target)

    def reset(self) -> None:
        """Forget every row."""
        self.cache = self._empty_cache()

    def _make_room(self, num_rows: int, length: int) -> None:
        rows, columns = self.cache.batch_size, self.cache.max_length
        while rows < num_rows:
            rows = max(1, 2 * rows)
        while columns < length:
            columns *= 2
        rows, columns = min(rows, self.max_batch_size), min(columns, self.max_model_len)
        if (rows, columns) != (self.cache.batch_size, self.cache.max_length):
            self.cache = self.cache.resized(rows, columns)


def groups_by_length(lengths: Sequence[int]) -> list[slice]:
    """Cut growing lengths into runs that are worth padding to their longest."""
    groups = []
    start = 0
    for index, length in enumerate(lengths):
        if lengths[start] < _MIN_FILL * length:
            groups.append(slice(start, index))
            start = index
    if start < len(lengths):
        groups.append(slice(start, len(lengths)))
    return groups
