"""Fixed log-probabilities, the losses of this project on them, and where TRL's are recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telechat.train.losses.dpo import dpo_loss
from telechat.train.losses.kto import kto_baseline, kto_loss
from telechat.train.losses.orpo import orpo_loss
from telechat.train.losses.simpo import simpo_loss

RECORDED = Path(__file__).with_name("trl_losses.json")

# Loss -> settings, each set a case.
SETTINGS: dict[str, list[dict[str, float]]] = {
    "dpo": [{"beta": 0.1}, {"beta": 0.5}],
    "orpo": [{"beta": 0.1}, {"beta": 1.0}],
    "simpo": [{"beta": 2.0, "gamma": 1.0}, {"beta": 2.5, "gamma": 0.0}],
    "kto": [
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        {"beta": 0.3, "desirable_weight": 1.33, "undesirable_weight": 0.7},
    ],
}
IS_GOOD = [True, False, False, True, True, False]


def log_probabilities(loss: str) -> dict[str, Tensor]:
    """fp32 [6] each: sums of an answer's tokens, or their means where the loss takes means."""
    generator = torch.Generator().manual_seed(11)
    names = ["first", "second", "reference_first", "reference_second"]
    scale = 3.0 if loss in ("orpo", "simpo") else 40.0
    return {name: -scale * torch.rand(6, generator=generator) - 0.01 for name in names}


def our_loss(loss: str, inputs: dict[str, Tensor], settings: dict[str, float]) -> Tensor:
    """Mean over the six rows []."""
    first, second, reference_first, reference_second = inputs.values()
    if loss == "dpo":
        return dpo_loss(first, second, reference_first, reference_second, **settings).mean()
    if loss == "orpo":
        return orpo_loss(first, second, **settings).mean()
    if loss == "simpo":
        return simpo_loss(first, second, **settings).mean()
    baseline = kto_baseline(second, reference_second)
    return kto_loss(first, reference_first, torch.tensor(IS_GOOD), baseline, **settings).mean()


def value_and_gradients(loss: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """A loss of (inputs) and its gradients, as plain numbers."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    value = loss(leaves)
    value.backward()
    return {
        "loss": value.item(),
        "gradients": {
            name: leaf.grad.tolist() if leaf.grad is not None else [0.0] * 6
            for name, leaf in leaves.items()
            if not name.startswith("reference")
        },
    }


def recorded() -> dict[str, list[dict[str, Any]]]:
    """TRL's values and gradients: loss -> one entry per setting."""
    content: dict[str, list[dict[str, Any]]] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return content
