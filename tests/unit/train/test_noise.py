"""NEFTune: noise of the stated size, in training only."""

from __future__ import annotations

import math

import torch
from tests.unit.train.test_loop import tiny_model

from telechat.train.noise import add_noise

IDS = torch.arange(4, 28).reshape(2, 12)


def test_noise_has_its_size_and_stays_out_of_evaluation() -> None:
    model = tiny_model()
    add_noise(model, 5.0)
    embed = model.transformer.word_embeddings
    plain = embed.weight[IDS]
    noise = (model.train().transformer.word_embeddings(IDS) - plain).abs().detach()
    bound = 5.0 / math.sqrt(12 * 32)
    assert noise.max() <= bound < 1.02 * noise.max()
    assert abs(float(noise.mean()) - bound / 2) < 0.05 * bound
    assert torch.equal(model.eval().transformer.word_embeddings(IDS), plain)


def test_none_without_alpha() -> None:
    model = tiny_model().train()
    add_noise(model, 0.0)
    assert torch.equal(model.transformer.word_embeddings(IDS), model.transformer.word_embeddings.weight[IDS])
