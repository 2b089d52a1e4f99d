"""A mixture of SwiGLU experts inside the decoder: routing as `layers.moe` does it, in fp32.

Shapes: E experts of the model, k experts per token. Knows the experts of this rank and their first number;
the shares of other ranks' experts are added up by the decoder's `reduce`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER
from dataclasses import dataclass

from torch import Tensor

from telechat.ops.cpu import library
from telechat.ops.cpu.tensors import vector_obstacle
from telechat.ops.cpu.weights import PackedWeight, weight_obstacle


@dataclass(frozen=True)
class Expert:
    """down(silu(gate(x)) * up(x)) + down_bias; the bias is float32 [hidden] or None."""

    gate: PackedWeight
    up: PackedWeight
    down: PackedWeight
    down_bias: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Router and experts of one layer.

    Attributes:
        router: float32 [E, hidden].
        experts: those of this rank, all of one form.
        first_expert: number of the first of them.
        num_experts_per_token: k.
        norm_topk_prob: the chosen probabilities are renormalised to sum to one.
        routed_scaling_factor: factor on them when they are not.
    """

    router: PackedWeight
    experts: Sequence[Expert]
    first_expert: int = 0
    num_experts_per_token: int
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0

    def obstacle(self, hidden: int) -> str | None:
        """Why the decoder cannot use it, or None."""
        if self.router.weight_format != "float32" or self.router.columns != hidden:
            return f"the router must be float32 with {hidden} inputs"
        if not 1 <= self.num_experts_per_token <= self.router.rows:
            return f"{self.num_experts_per_token} of {self.router.rows} experts per token"
        if not self.experts or self.first_expert + len(self.experts) > self.router.rows:
            return f"{len(self.experts)} experts from {self.first_expert} on; there are {self.router.rows}"
        ffn = self.experts[0].gate.rows
        for expert in self.experts:
            problem = (
                weight_obstacle("gate", expert.gate, ffn, hidden)
                or weight_obstacle("up", expert.up, ffn, hidden)
                or weight_obstacle("down", expert.down, hidden, ffn)
                or (expert.down_bias is not None and vector_obstacle("down_bias", expert.down_bias, hidden))
            )
            if problem:
                return problem
        return None

    def struct(self) -> library.Mixture:
        """What C is given; it refers to the weights, so the mixture must outlive it."""
        experts = (library.Expert * len(self.experts))()
        for struct, expert in zip(experts, self.experts, strict=True):
            for name in ("gate", "up", "down"):
                setattr(struct, name, ctypes.pointer(getattr(expert, name).struct))
            if expert.down_bias is not None:
                struct.down_bias = expert.down_bias.data_ptr()
        return library.Mixture(
            router=ctypes.pointer(self.router.struct),
            experts=ctypes.cast(experts, POINTER(library.Expert)),
            num_experts=self.router.rows,
            first_expert=self.first_expert,
            num_local=len(self.experts),
            experts_per_token=self.num_experts_per_token,
            renormalise=int(self.norm_topk_prob),
            scaling_factor=self.routed_scaling_factor,
        )
