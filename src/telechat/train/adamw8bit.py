"""AdamW whose two moments take one byte per number each, in plain torch.

A matrix's moments are kept as logarithmic numbers: a byte says which power of a fixed ratio the number is, in
proportion to the largest of its row. Numbers are rounded up or down by chance so that the average is right;
without that, a slowly falling moment would stay where it is. Vectors (norms, biases) keep fp32 moments.
Knows nothing of schedules or clipping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

# How far below the largest number of a row numbers go, as a power of two. What is smaller becomes 0 in the
# first moment, and the smallest number in the second, which divides.
_RANGE = 32.0
_SIGNED_LEVELS, _UNSIGNED_LEVELS = 127, 255


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with 8-bit moments; arguments as in torch's AdamW.

    State of a matrix [R, C]: `exp_avg` int8 and `exp_avg_sq` uint8 [R, C], with fp32 [R, 1] scales.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state.update(fresh_state(parameter))
                    _update(parameter, state, group)


def fresh_state(parameter: Tensor) -> dict[str, Tensor]:
    """The state before the first step."""
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    if parameter.dim() < 2:
        zeros = torch.zeros_like(parameter, dtype=torch.float32)
        return {"step": step, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
    scale = torch.zeros_like(parameter[..., :1], dtype=torch.float32)
    return {
        "step": step,
        "exp_avg": torch.zeros_like(parameter, dtype=torch.int8),
        "exp_avg_scale": scale,
        "exp_avg_sq": torch.zeros_like(parameter, dtype=torch.uint8),
        "exp_avg_sq_scale": scale.clone(),
    }


def _update(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """One AdamW step of one parameter, in fp32."""
    assert parameter.grad is not None
    gradient = parameter.grad.float()
    is_small = parameter.dim() < 2
    first = state["exp_avg"] if is_small else decode(state["exp_avg"], state["exp_avg_scale"])
    second = state["exp_avg_sq"] if is_small else decode(state["exp_avg_sq"], state["exp_avg_sq_scale"])
    beta1, beta2 = group["betas"]
    step = state["step"].add_(1)
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
    change = first / (1 - beta1**step) / denominator
    weight = parameter.float().mul_(1 - group["lr"] * group["weight_decay"])
    parameter.copy_(weight.add_(change, alpha=-group["lr"]))
    if not is_small:
        _keep(state, "exp_avg", first)
        _keep(state, "exp_avg_sq", second)


def _keep(state: dict[str, Tensor], name: str, value: Tensor) -> None:
    codes, scale = encode(value, signed=state[name].dtype == torch.int8)
    state[name].copy_(codes)
    state[f"{name}_scale"].copy_(scale)


def encode(value_RC: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """(codes [R, C] int8 or uint8, scales fp32 [R, 1]). Code 0 is 0, the last code the row's largest."""
    levels = _SIGNED_LEVELS if signed else _UNSIGNED_LEVELS
    octaves = _RANGE / (levels - 1)
    scale = value_RC.abs().amax(-1, keepdim=True)
    share = value_RC.abs() / scale.clamp(min=torch.finfo(torch.float32).tiny)
    place = torch.log2(share) / octaves + levels
    below = place.floor()
    # The chance of rounding up that makes the average right, on the way from `below` to the next level.
    fraction = (torch.exp2((place - below) * octaves) - 1) / (2**octaves - 1)
    codes = below + (torch.rand_like(fraction) < fraction)
    lowest = 0 if signed else 1
    codes = torch.where(share > 0, codes.clamp(lowest, levels), 0)
    if signed:
        return (codes * value_RC.sign()).to(torch.int8), scale
    return codes.to(torch.uint8), scale


def decode(codes_RC: Tensor, scale_R1: Tensor) -> Tensor:
    """fp32 [R, C] numbers of `encode`."""
    signed = codes_RC.dtype == torch.int8
    levels = _SIGNED_LEVELS if signed else _UNSIGNED_LEVELS
    numbers = codes_RC.float()
    size = torch.exp2((numbers.abs() - levels) * (_RANGE / (levels - 1))) * scale_R1
    return torch.where(numbers == 0, 0.0, size * numbers.sign())
