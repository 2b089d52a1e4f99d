"""The same ten steps by this project's engine and by a plain torch loop over a transformers model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from telechat.models import TeleChatModel
from telechat.train.batch import IGNORED, Batch
from telechat.train.config import OptimizerSection
from telechat.train.engine import LocalEngine
from telechat.train.objective import CrossEntropy

STEPS = 10
OPTIMIZER = OptimizerSection(lr=3e-3, weight_decay=0.1, max_grad_norm=1.0)
LENGTH = 24


def rows(vocab_size: int) -> Tensor:
    """ids int64 [STEPS, 2, LENGTH]; a few rows come again, so that there is something to learn."""
    generator = torch.Generator().manual_seed(9)
    known = torch.randint(4, vocab_size, (4, LENGTH), generator=generator)
    return known[torch.randint(4, (STEPS, 2), generator=generator)]


def batch_of(ids: Tensor) -> Batch:
    """Every token is a target."""
    B, S = ids.shape
    targets = torch.cat([ids[:, 1:], torch.full((B, 1), IGNORED)], dim=1)
    return Batch(
        ids=ids,
        positions=torch.arange(S).expand(B, S),
        segments=torch.zeros(B, S, dtype=torch.int32),
        targets=targets,
    )


def our_losses(model: TeleChatModel) -> list[float]:
    """Losses of the steps; the model is trained in place."""
    engine = LocalEngine(model, CrossEntropy(), OPTIMIZER, "fp32")
    losses = []
    for ids in rows(model.config.vocab_size):
        losses.append(float(engine.backward([batch_of(ids)]).mean))
        engine.clip(OPTIMIZER.max_grad_norm)
        engine.step(1.0)
    return losses


def their_losses(model: nn.Module, vocab_size: int) -> list[float]:
    """Losses of a transformers model that is given labels, with torch's AdamW."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": OPTIMIZER.weight_decay},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=OPTIMIZER.lr,
        betas=OPTIMIZER.betas,
        eps=OPTIMIZER.eps,
    )
    model.train()
    losses = []
    for ids in rows(vocab_size):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, OPTIMIZER.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def freeze(named: Iterable[tuple[str, nn.Parameter]], ends: tuple[str, ...]) -> None:
    """Leave parameters whose names have these ends as they are."""
    for name, parameter in named:
        if name.endswith(ends):
            parameter.requires_grad_(False)
