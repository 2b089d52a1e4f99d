"""Sparse mixture of SwiGLU experts (TeleChat2-39B-A12B).

Shapes: N tokens of the call, E experts, k experts per token.
Knows nothing of ranks; expert parallelism places experts from outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from telechat.layers.mlp import SwiGLU


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Shape and routing of a mixture-of-experts layer.

    Attributes:
        num_experts: experts per layer.
        num_experts_per_token: experts that each token is sent to.
        norm_topk_prob: renormalise the chosen probabilities to sum to one.
        routed_scaling_factor: factor on the probabilities when they are not renormalised.
        aux_loss_factor: weight of the load-balancing loss in training.
        capacity_factor: in training an expert takes at most ceil(k*N*factor/E) assignments of the call's N
            tokens that are no padding; 0 drops none.
    """

    num_experts: int
    num_experts_per_token: int
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    aux_loss_factor: float = 0.01
    capacity_factor: float = 0.0


@dataclass(frozen=True)
class Routing:
    """Where one layer sent its tokens: experts [N, k] by falling probability, weights [N, k], aux loss."""

    experts: Tensor
    weights: Tensor
    aux_loss: Tensor


class Router(nn.Module):
    """Chooses experts by softmax over fp32 logits of a bias-free linear map."""

    def __init__(self, hidden_size: int, config: MoeConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, hidden_size))

    def forward(self, x_ND: Tensor, is_real_N: Tensor | None = None) -> Routing:
        """Route N tokens; over-capacity assignments get weight 0 in training.

        Args:
            is_real_N: bool, False for padding, which counts for neither capacity nor balance.
        """
        config = self.config
        # Autocast would lower this product to bf16; the official router multiplies in fp32.
        with torch.autocast(x_ND.device.type, enabled=False):
            probabilities = torch.softmax(x_ND.float() @ self.weight.float().T, dim=-1)
        weights, experts = probabilities.topk(config.num_experts_per_token, dim=-1)
        real_N = torch.ones_like(weights[:, 0]) if is_real_N is None else is_real_N.float()
        if self.training and config.capacity_factor > 0:
            weights = weights * self._within_capacity(experts, real_N)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-9)
        else:
            weights = weights * config.routed_scaling_factor
        return Routing(experts, weights, self._balance_loss(probabilities, experts, real_N))

    def _within_capacity(self, experts_Nk: Tensor, real_N: Tensor) -> Tensor:
        """1 where an assignment fits its expert's capacity, else 0; first choices first, then token order."""
        N, k = experts_Nk.shape
        num_real = real_N.sum(dtype=torch.float64)
        wanted = k * num_real * self.config.capacity_factor / self.config.num_experts
        capacity = torch.minimum(num_real, wanted.ceil())
        by_choice = experts_Nk.T.reshape(-1)  # all first choices, then all second choices, …
        real = real_N.repeat(k)
        taken = (nn.functional.one_hot(by_choice, self.config.num_experts) * real[:, None]).cumsum(0)
        place = taken.gather(1, by_choice[:, None])[:, 0]
        return ((place <= capacity) * real).view(k, N).T.float()

    def _balance_loss(self, probabilities_NE: Tensor, experts_Nk: Tensor, real_N: Tensor) -> Tensor:
        """alpha * E * sum_e(mean probability of e * share of assignments to e); alpha when balanced."""
        k, E = self.config.num_experts_per_token, self.config.num_experts
        assigned = torch.bincount(experts_Nk.reshape(-1), real_N.repeat_interleave(k), minlength=E)
        counts = self._over_ranks(torch.cat([assigned.float(), real_N.sum()[None]]))
        num_real = counts[-1].clamp(min=1)
        share = counts[:-1] / (k * num_real)
        means = (probabilities_NE * real_N[:, None]).sum(0) / num_real
        return self.config.aux_loss_factor * E * (means * share).sum()

    def _over_ranks(self, counts: Tensor) -> Tensor:
        """Counts of the call's tokens; of all ranks', where each has a part of the sequences."""
        return counts


class MixtureOfExperts(nn.Module):
    """Top-k routed SwiGLU experts; every expert's `down_proj` bias is weighted by its routing weight."""

    def __init__(self, hidden_size: int, expert_hidden_size: int, config: MoeConfig) -> None:
        super().__init__()
        self.router = Router(hidden_size, config)
        self.local_experts = nn.ModuleList(
            SwiGLU(hidden_size, expert_hidden_size) for _ in range(config.num_experts)
        )

    def forward(
        self, x: Tensor, routings: list[Routing] | None = None, is_real: Tensor | None = None
    ) -> Tensor:
        """[..., hidden] -> [..., hidden]; appends the layer's Routing to `routings` when given.

        Args:
            is_real: bool [...], see `Router.forward`.
        """
        flat = x.reshape(-1, x.shape[-1])
        routing = self.router(flat, None if is_real is None else is_real.reshape(-1))
        if routings is not None:
            routings.append(routing)
        weights = routing.weights.to(x.dtype)
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.local_experts):
            tokens, slots = (routing.experts == index).nonzero(as_tuple=True)
            if tokens.numel():
                out = out.index_add(0, tokens, expert(flat[tokens]) * weights[tokens, slots, None])
        return out.view_as(x)
