"""Optimisers over parameter groups, and the learning-rate factor of a step."""

from __future__ import annotations

import torch
from torch import nn

from telechat.train.config import OptimizerSection, ScheduleSection


def learning_rate_factor(step: int, schedule: ScheduleSection) -> float:
    """Factor in [0, 1] on the peak rate at a zero-based step: warm-up, constant, linear decay to zero."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    decay_steps = max(1, int(schedule.total_steps * schedule.decay_fraction))
    return min(1.0, (schedule.total_steps - step) / decay_steps)


class OptimizerSet:
    """One or two torch optimisers stepped together."""

    def __init__(self, model: nn.Module, section: OptimizerSection) -> None:
        matrices, decayed, plain = _group(model, use_muon=section.name == "muon")
        groups = [
            {"params": decayed, "weight_decay": section.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps, fused=True)
        ]
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

    def state_dict(self) -> list[dict[str, object]]:
        """State of every optimiser, in order."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        """Restore what `state_dict` returned."""
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _group(
    model: nn.Module, *, use_muon: bool
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(matrices for Muon, other decayed weights, undecayed norms and biases)."""
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            plain.append(parameter)
        elif use_muon and ".h." in name:
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    return matrices, decayed, plain
