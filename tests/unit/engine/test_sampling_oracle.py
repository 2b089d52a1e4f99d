"""Scores after processing, against transformers' logits processors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.engine.test_sampler import ANSWER, PROMPT, random_logits, scores

from telechat.engine import SamplingParams

processors: Any = pytest.importorskip("transformers.generation.logits_process")


@pytest.mark.parametrize("scale", [0.5, 4.0])
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.03, 1.7])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(1.0, 0, 1.0, 0.0), (0.3, 5, 0.85, 0.0), (1.5, 50, 1.0, 0.0), (0.7, 0, 0.95, 0.0), (1.2, 0, 1.0, 0.02)],
)
def test_scores_are_those_of_transformers(
    scale: float, repetition_penalty: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = random_logits(400, seed=5, scale=scale)
    ids = torch.tensor([PROMPT + ANSWER])
    expected = logits[None].clone()
    chain = [processors.RepetitionPenaltyLogitsProcessor(repetition_penalty)]
    chain.append(processors.TemperatureLogitsWarper(temperature))
    if top_k:
        chain.append(processors.TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(processors.TopPLogitsWarper(top_p))
    if min_p:
        chain.append(processors.MinPLogitsWarper(min_p))
    for process in chain:
        expected = process(ids, expected)
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=0,
    )
    torch.testing.assert_close(scores(logits, params), expected[0])
