"""Requests and a scheduler without a model, for tests of policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.unit.engine.engine_samples import ByteTokenizer

from telechat.engine import SamplingParams
from telechat.engine.blocks import BlockAllocator
from telechat.engine.request import Request
from telechat.engine.rope import RopeRule
from telechat.engine.scheduler import Scheduler
from telechat.engine.text import TextStream
from telechat.engine.work import Step
from telechat.layers.rotary import RopeSettings
from telechat.models import RopeMode

BLOCK_SIZE = 4
TRAINING_LENGTH = 32


def request(prompt: int | Sequence[int] = 3, *, max_tokens: int = 5, **fields: Any) -> Request:
    """Of a prompt, or of a length (then with a text of its own)."""
    made = Request(
        prompt_token_ids=[9] if isinstance(prompt, int) else list(prompt),
        params=SamplingParams(),
        max_new_tokens=max_tokens,
        stop_token_ids=frozenset(),
        text_stream=TextStream(ByteTokenizer().stream_decoder()),
        **fields,
    )
    if isinstance(prompt, int):
        made.prompt_token_ids = [100 + made.number] * prompt
    return made


def scheduler(
    num_blocks: int = 100,
    *,
    max_batch_size: int = 4,
    max_batch_tokens: int = 64,
    prefix_caching: bool = True,
    rope_mode: RopeMode = "static",
) -> Scheduler:
    settings = RopeSettings(base_length=TRAINING_LENGTH, training_length=TRAINING_LENGTH)
    return Scheduler(
        BlockAllocator(num_blocks, BLOCK_SIZE, prefix_caching=prefix_caching),
        RopeRule(rope_mode, settings, TRAINING_LENGTH),
        max_batch_size=max_batch_size,
        max_batch_tokens=max_batch_tokens,
    )


def run_step(policy: Scheduler, token_id: int = 7, *, num_accepted: int = 0) -> Step:
    """One step with a model that always says `token_id` and agrees with up to `num_accepted` drafts."""
    step = policy.schedule()
    ended: dict[Request, int] = {}
    for work in step.work:
        ended[work.request] = ended.get(work.request, 0) + work.num_logits
    for one, num_logits in ended.items():
        is_complete = max(work.stop for work in step.work if work.request is one) >= one.num_tokens
        if is_complete and one.pooling is None:
            accepted = one.draft_token_ids[: min(num_accepted, num_logits - 1)]
            for accepted_id in [*accepted, token_id]:
                if one.finish_reason is None:
                    one.accept(accepted_id)
    policy.commit(step)
    for one in ended:
        if one.finish_reason or (one.pooling and one.num_computed_tokens == one.num_tokens):
            policy.finish(one)
    return step


def lengths(step: Step) -> dict[Request, int]:
    """New tokens of each request in a step."""
    found: dict[Request, int] = {}
    for work in step.work:
        found[work.request] = found.get(work.request, 0) + work.num_new_tokens
    return found
