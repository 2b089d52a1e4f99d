"""A stand-in for torch_npu: records each call and computes it in plain torch, as torch_npu documents it."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class StandIn(ModuleType):
    """Put into `sys.modules` as torch_npu.

    Attributes:
        calls: (operator, keyword arguments) in order.
    """

    def __init__(self) -> None:
        super().__init__("torch_npu")
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def npu_rms_norm(self, x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
        self.calls.append(("npu_rms_norm", {"epsilon": epsilon}))
        rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
        return (x.float() * rstd * gamma.float()).to(x.dtype), rstd

    def npu_add_rms_norm(
        self, x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
    ) -> tuple[Tensor, Tensor, Tensor]:
        total = x1 + x2
        normed, rstd = self.npu_rms_norm(total, gamma, epsilon)
        self.calls[-1] = ("npu_add_rms_norm", {"epsilon": epsilon})
        return normed, rstd, total

    def npu_swiglu(self, x: Tensor, dim: int = -1) -> Tensor:
        self.calls.append(("npu_swiglu", {"dim": dim}))
        gate, up = x.chunk(2, dim)
        return F.silu(gate) * up

    def npu_rotary_mul(self, x: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
        assert x.is_contiguous() and x.dim() == 4 and r1.shape[2] == 1, "[B, S, N, D], tables [1, S, 1, D]"
        self.calls.append(("npu_rotary_mul", {"dtype": x.dtype}))
        first, second = x.chunk(2, -1)
        return x * r1 + torch.cat([-second, first], -1) * r2

    def npu_fused_infer_attention_score(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        atten_mask: Tensor | None = None,
        actual_seq_lengths_kv: list[int] | None = None,
        block_table: Tensor | None = None,
        num_heads: int = 1,
        scale: float = 1.0,
        input_layout: str = "BSH",
        num_key_value_heads: int = 0,
        sparse_mode: int = 0,
        block_size: int = 0,
    ) -> tuple[Tensor, Tensor]:
        assert query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
        assert input_layout == "BNSD" and query.dtype in (torch.float16, torch.bfloat16)
        B, N, S, D = query.shape
        assert num_heads == N and math.isclose(scale, D**-0.5)
        is_paged = block_table is not None
        self.calls.append(
            ("npu_fused_infer_attention_score", {"paged": is_paged, "sparse_mode": sparse_mode})
        )
        out = torch.empty_like(query)
        for row in range(B):
            keys, values = key[row] if not is_paged else key, value[row] if not is_paged else value
            if is_paged:
                assert block_table is not None and block_table.dtype == torch.int32
                assert actual_seq_lengths_kv is not None and key.shape[1:3] == (
                    num_key_value_heads,
                    block_size,
                )
                length = actual_seq_lengths_kv[row]
                blocks = block_table[row, : -(-length // block_size)].long()
                keys, values = (x[blocks].transpose(0, 1).flatten(1, 2)[:, :length] for x in (key, value))
            mask = None
            if sparse_mode == 3:
                assert atten_mask is not None and atten_mask.shape == (2048, 2048)
                assert atten_mask.dtype == torch.bool and torch.equal(atten_mask, atten_mask.triu(1))
                places = torch.arange(keys.shape[1])
                mask = places <= places[-S:, None]
            out[row] = F.scaled_dot_product_attention(
                query[row], keys, values, attn_mask=mask, enable_gqa=num_key_value_heads != N
            )
        return out, torch.zeros(1)
