"""Linear layers on CUDA by Triton: one row at a time, and weights of 8 or 4 bits.

Which form a call takes depends on its number of rows. One row: elementwise sums, bound by memory. Few rows:
matrix units, weights unpacked on the way. Many: the weights are unpacked first and torch multiplies. Weights
are laid out as `telechat.ops.quantized` says. With `gated` the first half of the outputs opens the second:
silu(first) * second. Whether the device can run Triton is said by `launch`. Knows nothing of layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from telechat.ops.cuda.launch import dtype_obstacle, interpreted, on_device, operand

GROUP_SIZES = (32, 64, 128)
# From here on unpacking all weights costs less than unpacking them again for every block of rows.
MANY_ROWS = 256


class Tile(NamedTuple):
    """What a program of a one-row product has at a time.

    Attributes:
        rows: of the weight.
        block: elements of each of these rows, or words of 32 bits where weights are integers.
    """

    rows: int
    block: int
    num_warps: int


# A thread has 16 bytes of each of its rows at a time. Which of these keeps most bytes on the way differs from
# one device and size to another: `tuning` finds it.
FLOAT_TILES = (Tile(8, 1024, 4), Tile(4, 1024, 4), Tile(2, 1024, 4), Tile(4, 512, 2), Tile(2, 2048, 8))
INT4_TILES = (Tile(8, 512, 4), Tile(4, 512, 4), Tile(4, 256, 2), Tile(2, 512, 4), Tile(8, 256, 4))
INT8_TILES = (Tile(8, 256, 4), Tile(4, 512, 4), Tile(4, 256, 2), Tile(2, 512, 4), Tile(8, 512, 4))
# The interpreter's cost is that of its programs, whatever their size.
_INTERPRETED_FLOAT = Tile(16, 256, 4)
_INTERPRETED_INTEGERS = Tile(16, 64, 4)


def tiles_for(bits: int | None) -> tuple[Tile, ...]:
    """Tiles worth trying for integers of so many bits, or floats (None); the first one is good in general."""
    if interpreted():
        return (_INTERPRETED_FLOAT if bits is None else _INTERPRETED_INTEGERS,)
    return {None: FLOAT_TILES, 4: INT4_TILES, 8: INT8_TILES}[bits]


def linear_obstacle(x: Tensor, weight: Tensor) -> str | None:
    """Why `linear` cannot take these, or None."""
    if x.dim() != 2 or x.stride(1) != 1 or weight.stride(1) != 1 or x.shape[1] != weight.shape[1]:
        return f"x {tuple(x.shape)} and weight {tuple(weight.shape)} must be [rows, K] and [N, K] by rows"
    return dtype_obstacle(x.dtype, weight.dtype)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gated: bool = False, tile: Tile | None = None
) -> Tensor:
    """x [M, K] times weight [N, K] (+ bias [N]) in x's dtype; more than one row is done by torch."""
    if x.shape[0] != 1:
        return _opened(F.linear(x, weight, bias), gated)
    from telechat.ops.cuda.kernels import matmul

    rows, block, num_warps = tile or tiles_for(None)[0]
    k = weight.shape[1]
    n = weight.shape[0] // 2 if gated else weight.shape[0]
    out = torch.empty((1, n), dtype=x.dtype, device=x.device)
    with on_device(x):
        matmul.row_float[(-(-n // rows),)](
            x,
            weight,
            x if bias is None else bias,
            out,
            n,
            k,
            weight.stride(0),
            BLOCK_ROWS=rows,
            BLOCK_K=block,
            BIAS=bias is not None,
            GATED=gated,
            num_warps=num_warps,
        )
    return out


def _opened(out: Tensor, gated: bool) -> Tensor:
    if not gated:
        return out
    from telechat.ops.cuda.rows import swiglu

    return swiglu(*out.chunk(2, dim=1))


def quantized_obstacle(
    x: Tensor, qweight: Tensor, scales: Tensor, *, bits: int, group_size: int
) -> str | None:
    """Why `quantized_linear` cannot take these, or None."""
    if bits not in (4, 8) or group_size not in GROUP_SIZES:
        return f"{bits} bits in groups of {group_size}; the kernels know 4 and 8 bits, groups {GROUP_SIZES}"
    if qweight.dtype != (torch.uint8 if bits == 4 else torch.int8):
        return f"weights of {bits} bits are stored as {qweight.dtype}"
    k = x.shape[-1]
    if k % group_size or qweight.shape[1] * 8 != k * bits or scales.shape[1] * group_size != k:
        return f"weights {tuple(qweight.shape)} and scales {tuple(scales.shape)} do not fit {k} inputs"
    if not qweight.is_contiguous() or not scales.is_contiguous() or qweight.data_ptr() % 4:
        return "weights and scales must be contiguous and aligned"
    return dtype_obstacle(x.dtype, scales.dtype)


def quantized_linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    *,
    bits: int,
    group_size: int,
    bias: Tensor | None = None,
    gated: bool = False,
    tile: Tile | None = None,
) -> Tensor:
    """x [M, K] times integer weights [N, K] (+ bias), in x's dtype.

    Args:
        qweight: int8 [N, K], or uint8 [N, K/2] of weights + 8, the earlier one in the lower half.
        scales: [N, K / group_size], a weight is integer * scale.
        tile: of a product with one row.
    """
    num_rows = x.shape[0]
    x = x.contiguous()
    if num_rows == 1:
        chosen = tile or tiles_for(bits)[0]
        return _one_row(x, qweight, scales, bits, group_size, bias, gated, chosen)
    if num_rows >= MANY_ROWS:
        weight = unpack(qweight, scales, bits=bits, group_size=group_size, dtype=x.dtype)
        return _opened(F.linear(x, weight, bias), gated)
    return _opened(_few_rows(x, qweight, scales, bits, group_size, bias), gated)


def _one_row(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    bits: int,
    group_size: int,
    bias: Tensor | None,
    gated: bool,
    tile: Tile,
) -> Tensor:
    from telechat.ops.cuda.kernels import matmul

    k = x.shape[1]
    n = qweight.shape[0] // 2 if gated else qweight.shape[0]
    words = qweight.view(torch.int32)
    out = torch.empty((1, n), dtype=x.dtype, device=x.device)
    with on_device(x):
        matmul.row_integers[(-(-n // tile.rows),)](
            x,
            words,
            scales,
            x if bias is None else bias,
            out,
            n,
            words.shape[1],
            k // group_size,
            BITS=bits,
            WORDS_PER_GROUP=group_size * bits // 32,
            BLOCK_ROWS=tile.rows,
            BLOCK_K=tile.block,
            BIAS=bias is not None,
            GATED=gated,
            num_warps=tile.num_warps,
        )
    return out


def _few_rows(
    x: Tensor, qweight: Tensor, scales: Tensor, bits: int, group_size: int, bias: Tensor | None
) -> Tensor:
    from telechat.ops.cuda.kernels import matmul

    (m, k), n = x.shape, qweight.shape[0]
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    block_m = 16 if m <= 16 else 32 if m <= 32 else 64
    # Narrow blocks of columns while the weights' way from memory is what takes the time.
    block_n = 32 if m <= 16 else 64
    operand_dtype, precision = operand(x.dtype)
    with on_device(x):
        matmul.many_rows[(-(-m // block_m), -(-n // block_n))](
            x,
            qweight,
            scales,
            x if bias is None else bias,
            out,
            m,
            n,
            k,
            x.stride(0),
            BITS=bits,
            GROUP=group_size,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BIAS=bias is not None,
            OPERAND=operand_dtype,
            PRECISION=precision,
            num_warps=4,
            num_stages=3,
        )
    return out


def unpack(qweight: Tensor, scales: Tensor, *, bits: int, group_size: int, dtype: torch.dtype) -> Tensor:
    """The weights [N, K] in `dtype`."""
    from telechat.ops.cuda.kernels import matmul

    n = qweight.shape[0]
    k = scales.shape[1] * group_size
    out = torch.empty((n, k), dtype=dtype, device=qweight.device)
    block = 1024
    with on_device(qweight):
        matmul.unpack[(n, -(-qweight.shape[1] // block))](
            qweight, scales, out, k, BITS=bits, GROUP=group_size, BLOCK=block, num_warps=4
        )
    return out
