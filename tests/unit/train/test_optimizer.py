"""Which parameters go to which optimiser, at which rate and decay."""

from __future__ import annotations

import pytest
import torch
from tests.unit.train.test_loop import tiny_model

from telechat.train.adamw8bit import AdamW8bit
from telechat.train.config import OptimizerSection
from telechat.train.optimizer import OptimizerSet


def test_muon_takes_the_matrices_of_blocks_at_its_own_rate() -> None:
    model = tiny_model()
    section = OptimizerSection(name="muon", lr=0.3, muon_lr=0.7, weight_decay=0.2)
    adamw, muon = OptimizerSet(model.named_parameters(), section).optimizers
    matrices = {p for name, p in model.named_parameters() if ".h." in name and p.dim() == 2}
    assert set(muon.param_groups[0]["params"]) == matrices
    assert (muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"]) == (0.7, 0.3)


def test_norms_and_biases_are_not_decayed() -> None:
    model = tiny_model()
    (adamw,) = OptimizerSet(model.named_parameters(), OptimizerSection(weight_decay=0.2)).optimizers
    for group in adamw.param_groups:
        assert {p.dim() > 1 for p in group["params"]} == {group["weight_decay"] > 0}


def test_rates_follow_the_factor() -> None:
    model = tiny_model()
    optimizers = OptimizerSet(model.named_parameters(), OptimizerSection(name="muon", lr=0.3, muon_lr=0.7))
    optimizers.step(0.5)
    assert optimizers.learning_rate() == pytest.approx(0.15)
    assert optimizers.optimizers[1].param_groups[0]["lr"] == pytest.approx(0.35)


def test_frozen_parameters_are_left_out() -> None:
    model = tiny_model()
    model.transformer.word_embeddings.weight.requires_grad_(False)
    optimizers = OptimizerSet(model.named_parameters(), OptimizerSection(name="adamw-8bit"))
    assert isinstance(optimizers.optimizers[0], AdamW8bit)
    assert "transformer.word_embeddings.weight" not in optimizers.state()
    assert not any(torch.equal(p, model.transformer.word_embeddings.weight) for p in optimizers.parameters)
