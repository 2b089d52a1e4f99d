"""Products of activations and packed weights, with bias.

With int4 and int8 weights the activations are quantised on the fly, int8 by groups of 32; w8a8 weights say
how their activations become int8, and all sums are integers to the end. On an AMX machine rows of prompts
take another way: activations in bf16 and weights turned into bf16. bf16 weights take activations rounded to
bf16. Every row is summed in the same order at any number of rows. Shapes: M rows, N outputs, K inputs.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from telechat.ops.cpu.context import Context
from telechat.ops.cpu.library import Output, Source
from telechat.ops.cpu.tensors import ELEMENT_TYPES, element_obstacle, require
from telechat.ops.cpu.weights import PackedWeight, is_quantised

ACTIVATION_GROUP = 32
# From so many rows on, turning quantised weights into bf16 beats integer products.
_MANY_ROWS = 48


def obstacle(x_MK: Tensor, weight: PackedWeight, bias_N: Tensor | None) -> str | None:
    """Why `matmul` cannot take these, or None."""
    if x_MK.dim() != 2 or x_MK.shape[1] != weight.columns:
        return f"activations of shape {tuple(x_MK.shape)} do not fit {weight.columns} inputs"
    if bias_N is not None and (bias_N.dtype != torch.float32 or bias_N.shape != (weight.rows,)):
        return f"the bias must be float32 [{weight.rows}]"
    return element_obstacle(x_MK, *([] if bias_N is None else [bias_N]))


def matmul(
    context: Context,
    x_MK: Tensor,
    weight: PackedWeight,
    bias_N: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    add_to: Tensor | None = None,
    num_decoding: int | None = None,
) -> Tensor:
    """x @ weight.T + bias, [M, N].

    Args:
        x_MK: float32 or bfloat16.
        out_dtype: dtype of the result; x's by default.
        add_to: [M, N], contiguous; the result is added to it in place and it is returned.
        num_decoding: so many rows at the beginning take the way of decoding; by default all if they are few.
    """
    require(obstacle(x_MK, weight, bias_N))
    M = x_MK.shape[0]
    out = torch.empty(M, weight.rows, dtype=out_dtype or x_MK.dtype) if add_to is None else add_to
    require(element_obstacle(out))
    assert out.shape == (M, weight.rows), out.shape
    source = Source(x_MK.data_ptr(), None, ELEMENT_TYPES[x_MK.dtype], weight.columns)
    bias = None if bias_N is None else bias_N.data_ptr()
    output = Output(out.data_ptr(), bias, ELEMENT_TYPES[out.dtype], int(add_to is not None), weight.rows)
    context.library.tc_matmul(
        context.handle,
        ctypes.byref(weight.struct),
        ctypes.byref(source),
        M,
        ctypes.byref(output),
        (M if M < _MANY_ROWS else 0) if num_decoding is None else num_decoding,
    )
    return out


def round_activations_reference(x_MK: Tensor, weight: PackedWeight) -> Tensor:
    """fp32 [M, K]: the activations as the product sees them."""
    x = x_MK.float()
    if weight.weight_format in ("bfloat16", "compact"):
        return x.bfloat16().float()
    if not is_quantised(weight.weight_format):
        return x
    M, K = x.shape
    padded = torch.nn.functional.pad(x, (0, -K % ACTIVATION_GROUP)).view(M, -1, ACTIVATION_GROUP)
    largest = padded.abs().amax(-1, keepdim=True)
    # Not `127 / largest`: torch computes that as 127 times a rounded reciprocal, and ties fall otherwise.
    inverse = torch.full_like(largest, 127) / largest
    q = torch.where(largest > 0, padded * inverse, 0).round()
    return (q * (largest / 127)).view(M, -1)[:, :K]


def matmul_reference(x_MK: Tensor, weight: PackedWeight, bias_N: Tensor | None = None) -> Tensor:
    """The product of decoding in fp32, [M, N]; kernels differ from it by the order of additions only."""
    out = round_activations_reference(x_MK, weight) @ weight.unpack().T
    return out if bias_N is None else out + bias_N
