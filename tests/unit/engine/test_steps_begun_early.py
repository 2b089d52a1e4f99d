"""Steps that the fused executor begins before the host knows their tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.unit.engine.engine_samples import random_prompts, tiny_llm
from tests.unit.models.plain_kernels import PretendRecorder, plain_kernels

from telechat.engine import SamplingParams
from telechat.models import TeleChatModel
from telechat.models.fused import FusedExecutor
from telechat.ops.paged_choice import REFERENCE


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_they_change_no_answer(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    recorder = PretendRecorder()

    def fused(model: TeleChatModel, **settings: Any) -> FusedExecutor:
        del settings
        return FusedExecutor(copy.deepcopy(model), plain_kernels(recorder), paged=REFERENCE)

    prompts = random_prompts(12, seed=12)
    params = [
        SamplingParams(temperature=temperature, max_tokens=3 + 4 * (n % 5), seed=n, top_p=0.9)
        for n in range(len(prompts))
    ]
    expected = tiny_llm(max_batch_size=5).generate(prompts, params)
    monkeypatch.setattr("telechat.engine.opening.choose_executor", fused)
    llm = tiny_llm(max_batch_size=5, block_size=32)
    for output, one in zip(llm.generate(prompts, params), expected, strict=True):
        assert output.outputs[0].token_ids == one.outputs[0].token_ids
    assert not llm.engine.has_work and llm.stats().num_free_blocks == llm.stats().num_blocks
    assert recorder.replayed > 10
    # Alone, only the first decoding step is computed when it is asked for; the others are there already, also
    # the one that begins a block.
    replays = []
    forward = llm.executor.forward

    def counted(batch: Any) -> torch.Tensor:
        before = recorder.replayed
        logits = forward(batch)
        replays.append(recorder.replayed - before)
        return logits

    monkeypatch.setattr(llm.executor, "forward", counted)
    before = recorder.replayed
    llm.generate([*range(20, 45)], SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True))
    assert replays == [0, 1, *[0] * 10]
    assert recorder.replayed - before == 11, "nothing is begun behind the last step"
