"""The training engine has loss and gradients of the official code, and trains as transformers does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.golden.recorded import OFFICIAL, arrays, assert_close, ids, recorded_model, values
from tests.golden.test_llama_oracle import GENERATIONS, random_model, to_llama

from telechat.train.batch import IGNORED, Batch
from telechat.train.config import OptimizerSection
from telechat.train.engine import LocalEngine
from telechat.train.objective import CrossEntropy
from telechat.train.recompute import Recompute, apply_recompute


def batch_of(input_ids: torch.Tensor, labels: torch.Tensor) -> Batch:
    """A batch of whole rows with labels [B, S] that are not shifted yet."""
    B, S = input_ids.shape
    return Batch(
        ids=input_ids,
        positions=torch.arange(S).expand(B, S),
        segments=torch.zeros(B, S, dtype=torch.int32),
        targets=F.pad(labels[:, 1:], (0, 1), value=IGNORED),
    )


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("variant", OFFICIAL)
def test_loss_and_gradients_of_the_official_code(variant: str, recompute: Recompute) -> None:
    model = recorded_model(variant)
    apply_recompute(model.transformer.blocks, recompute)
    engine = LocalEngine(model, CrossEntropy(), OptimizerSection(), "fp32")
    loss = engine.backward([batch_of(ids(variant, "input_ids"), ids(variant, "labels"))])
    assert_close(loss.mean, values(variant, "loss"))
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    names = [str(name) for name in arrays(variant)["grad_norm_names"]]
    assert set(names) == set(gradients)
    assert_close(torch.stack([gradients[name].norm() for name in names]), values(variant, "grad_norms"))
    key_value = gradients["transformer.h.0.self_attention.key_value.weight"]
    assert_close(key_value, values(variant, "grad_h0_key_value"))


@pytest.mark.parametrize("generation", ["telechat-7b", "telechat2-115b"])
def test_losses_of_twenty_steps_equal_those_of_transformers(generation: str) -> None:
    """Llama has biases that TeleChat lacks; they are 0 and are left out of its training."""
    model = random_model(GENERATIONS[generation])
    llama = to_llama(model, 32).train()
    idle = ("q_proj.bias", "k_proj.bias", "v_proj.bias", "gate_proj.bias", "up_proj.bias")
    named = [(name, p) for name, p in llama.named_parameters() if not name.endswith(idle)]
    # A large epsilon: at 1e-8 AdamW turns rounding of near-zero gradients into whole steps.
    section = OptimizerSection(lr=3e-3, eps=1e-4, weight_decay=0.1, max_grad_norm=1.0)
    theirs = torch.optim.AdamW(
        [
            {"params": [p for _, p in named if p.dim() > 1], "weight_decay": section.weight_decay},
            {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=section.lr,
        betas=section.betas,
        eps=section.eps,
    )
    engine = LocalEngine(model, CrossEntropy(), section, "fp32")
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        input_ids = torch.randint(0, model.config.vocab_size, (4, 32), generator=generator)
        labels = torch.where(torch.rand(4, 32, generator=generator) < 0.3, IGNORED, input_ids)
        loss = engine.backward([batch_of(input_ids[:2], labels[:2]), batch_of(input_ids[2:], labels[2:])])
        norm = engine.clip(section.max_grad_norm)
        engine.step(1.0)
        theirs.zero_grad()
        logits = llama(input_ids).logits
        expected = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        expected.backward()
        expected_norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], section.max_grad_norm)
        theirs.step()
        assert float(loss.mean) == pytest.approx(float(expected.detach()), rel=1e-4)
        assert norm == pytest.approx(float(expected_norm), rel=1e-3)
