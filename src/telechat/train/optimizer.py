"""Optimisers over parameter groups. Knows nothing of schedules, clipping or ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from telechat.train import adamw8bit
from telechat.train.config import OptimizerSection

Named = tuple[str, nn.Parameter]


class OptimizerSet:
    """One or two torch optimisers stepped together.

    Args:
        named: a model's parameters under their official names; those that need no gradient are left out.
        section: the settings.

    Attributes:
        parameters: what is trained.
    """

    def __init__(self, named: Iterable[Named], section: OptimizerSection) -> None:
        self._named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self.parameters = [parameter for _, parameter in self._named]
        matrices, decayed, plain = _group(self._named, use_muon=section.name == "muon")
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": section.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizers: list[torch.optim.Optimizer] = [_adamw(groups, section)]
        if matrices:
            self.optimizers.append(
                torch.optim.Muon(
                    matrices,
                    lr=section.muon_lr,
                    weight_decay=section.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    def step(self, factor: float) -> None:
        """One update at `factor` times the peak learning rates."""
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def learning_rate(self) -> float:
        """The rate of the last step, of the first parameter group."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The live state tensors by parameter name; made, as zeros, where no step was taken yet."""
        names = {parameter: name for name, parameter in self._named}
        state: dict[str, dict[str, Tensor]] = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    known = optimizer.state[parameter]
                    if not known:
                        known.update(_fresh_state(optimizer, parameter))
                    state[names[parameter]] = dict(known)
        return state


def _adamw(groups: list[dict[str, Any]], section: OptimizerSection) -> torch.optim.Optimizer:
    """AdamW over groups of parameters, in the form that the settings name."""
    if section.name == "adamw-8bit":
        return adamw8bit.AdamW8bit(groups, lr=section.lr, betas=section.betas, eps=section.eps)
    return torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps, fused=True)


def _fresh_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What an optimiser would make at its first step; needed before it to load into."""
    if isinstance(optimizer, torch.optim.Muon):
        return {"momentum_buffer": torch.zeros_like(parameter)}
    if isinstance(optimizer, adamw8bit.AdamW8bit):
        return adamw8bit.fresh_state(parameter)
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def _group(
    named: Iterable[Named], *, use_muon: bool
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for Muon, other decayed weights, undecayed norms and biases)."""
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.dim() < 2:
            plain.append(parameter)
        elif use_muon and ".h." in name:
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    return matrices, decayed, plain
