"""Products of activations with quantised weights: a reference for every device, and faster forms.

A form is made once from a stored weight and keeps what it needs in its own layout. `auto` takes the fastest
one that can run: the kernels for the device, on a CPU without them torch's weight-only products, else the
reference. Shapes: M rows, N outputs, K inputs, G groups of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from telechat.device import CPU, supports_bfloat16
from telechat.errors import DeviceError
from telechat.ops.cpu import library
from telechat.ops.cpu.context import Context, shared_context
from telechat.ops.cpu.matmul import matmul as kernel_matmul
from telechat.ops.cpu.weights import PackedWeight, WeightFormat
from telechat.ops.cuda import matmul as triton_matmul
from telechat.ops.cuda.launch import triton_obstacle
from telechat.ops.pages import empty_pages
from telechat.ops.quantized import QuantizedWeight, WeightScheme

Product = Callable[[Tensor], Tensor]

# Elements turned into floats at a time: the piece stays in the second-level cache of a core.
_DEQUANTISED_AT_ONCE = 2**20
# Larger pieces where torch multiplies them: its products of a few hundred outputs take twice as long.
_MULTIPLIED_AT_ONCE = 2**22
# Elements of a call of torch's int4 product for each thread.
_INT4_A_THREAD = 2**21
# From so many rows on, turning the weight into bf16 costs less than what torch's weight-only products lose.
_MANY_ROWS_INT4 = 48
_MANY_ROWS_INT8 = 16


@dataclass(frozen=True)
class ProductChoice:
    """A form: its name, the product [M, K] -> [M, N] in the activations' dtype, and why it was chosen."""

    name: str
    product: Product
    reason: str


class ReferenceProduct:
    """Turns some rows of the weight at a time into the activations' dtype and multiplies; on any device."""

    name = "dequantise"

    def __init__(self, weight: QuantizedWeight) -> None:
        self.weight = weight

    def __call__(self, x_MK: Tensor) -> Tensor:
        """x @ weight.T; differentiable in x, for which the weight is turned into floats a second time."""
        out: Tensor = _FrozenProduct.apply(x_MK, self.weight)  # type: ignore[no-untyped-call]
        return out


class _FrozenProduct(torch.autograd.Function):
    """x [M, K] @ weight.T -> [M, N] that keeps no float form of the weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight: QuantizedWeight) -> Tensor:
        ctx.weight, ctx.x_dtype = weight, x_MK.dtype
        x = x_MK.to(_product_dtype(x_MK))
        pieces = [F.linear(x, rows.dequantise(x.dtype)) for _, rows in _row_pieces(weight)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)

    @staticmethod
    def backward(ctx: Any, gradient_MN: Tensor) -> tuple[Tensor, None]:
        total = gradient_MN.new_zeros(gradient_MN.shape[0], ctx.weight.columns, dtype=torch.float32)
        for start, rows in _row_pieces(ctx.weight):
            part = gradient_MN[:, start : start + rows.rows]
            total += part @ rows.dequantise(gradient_MN.dtype)
        return total.to(ctx.x_dtype), None


def _row_pieces(weight: QuantizedWeight) -> Iterator[tuple[int, QuantizedWeight]]:
    """(first row, some rows) of a weight, as many as are turned into floats at a time."""
    step = max(16, _DEQUANTISED_AT_ONCE // weight.columns)
    for start in range(0, weight.rows, step):
        yield start, weight.take_rows(start, min(weight.rows, start + step))


def _product_dtype(x: Tensor) -> torch.dtype:
    """What products of `x` are computed in: autocast's format where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class TorchInt4Product:
    """torch's int4 product on the CPU for few rows; for many, the weight becomes bf16 a piece at a time.

    Both compute in bf16, scales included: against the stored fp16 scales that is an error of at most 1 part
    in 512 of a weight. The weight is cut into pieces of some outputs, a call for each: torch reads megabytes
    a thread and call a fifth more slowly.
    """

    name = "torch int4"

    def __init__(self, weight: QuantizedWeight) -> None:
        self.group_size = weight.scheme.group_size
        self.rows, self.columns = weight.rows, weight.columns
        width = _int4_half_width()
        assert width is not None
        self.half_width = width
        packed = empty_pages((self.rows, self.columns // 2), torch.uint8)
        num_groups = self.columns // self.group_size
        scales_and_zeros = empty_pages((self.rows * num_groups * 2,), torch.bfloat16).zero_()
        # Whole blocks of torch's layout for each thread.
        unit = 2 * width * torch.get_num_threads()
        step = unit * max(1, torch.get_num_threads() * _INT4_A_THREAD // (unit * self.columns))
        self.pieces: list[_Int4Piece] = []
        for start in range(0, self.rows, step):
            piece = weight.take_rows(start, min(self.rows, start + step))
            rows = slice(start, start + piece.rows)
            # torch's packer takes int32, eight times what it gives.
            packed[rows] = _pack_int4(piece.integers().int() + 8)
            both = scales_and_zeros[2 * start * num_groups :][: 2 * piece.scales.numel()]
            both = both.view(num_groups, piece.rows, 2)
            both[..., 0] = piece.scales.t()
            self.pieces.append(_Int4Piece(rows, packed[rows], both))
        self.float_dtype = torch.bfloat16 if supports_bfloat16(CPU) else torch.float32

    @staticmethod
    def obstacle(scheme: WeightScheme, rows: int, device: torch.device) -> str | None:
        """Why this form cannot take a weight, or None."""
        if scheme.bits != 4:
            return f"the weights have {scheme.bits} bits"
        if device.type != CPU.type:
            return f"the weights are on {device.type}"
        width = _int4_half_width()
        if width is None:
            return "this torch has no int4 product for this processor"
        return f"{rows} outputs are no multiple of {2 * width}" if rows % (2 * width) else None

    def __call__(self, x_MK: Tensor) -> Tensor:
        if x_MK.shape[0] >= _MANY_ROWS_INT4:
            return self._many_rows(x_MK.to(self.float_dtype)).to(x_MK.dtype)
        x = x_MK.to(torch.bfloat16).contiguous()
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
        outs = [multiply(x, piece.packed, self.group_size, piece.scales_and_zeros) for piece in self.pieces]
        return (outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)).to(x_MK.dtype)

    def _many_rows(self, x_MK: Tensor) -> Tensor:
        """Pieces of the transposed weight [K, rows], as the packed layout has rows innermost."""
        K, half, group = self.columns, self.half_width, self.group_size
        out = torch.empty(x_MK.shape[0], self.rows, dtype=x_MK.dtype)
        nibbles = torch.empty_like(self.pieces[0].packed)
        values = torch.empty(2 * nibbles.numel(), dtype=x_MK.dtype)
        for piece in self.pieces:
            blocks = piece.packed.view(-1, K, half)
            codes = nibbles[: len(piece.packed)].view_as(blocks)
            signed = codes.view(torch.int8)
            weight_KN = values[: 2 * blocks.numel()].view(K, -1)
            halves = weight_KN.view(K, len(blocks), 2, half)
            for number, shift in enumerate((0, 4)):
                torch.bitwise_right_shift(blocks, shift, out=codes)
                codes.bitwise_and_(15)
                halves[:, :, number] = signed.sub_(8).transpose(0, 1)
            # Side by side in memory: torch multiplies by every second element forty times as slowly.
            scales = piece.scales_and_zeros[..., 0].to(x_MK.dtype).contiguous()
            weight_KN.view(K // group, group, -1).mul_(scales[:, None])
            torch.mm(x_MK, weight_KN, out=out[:, piece.rows])
        return out


@dataclass(frozen=True)
class _Int4Piece:
    """Some outputs of a weight as torch's product takes them.

    Attributes:
        rows: which outputs.
        packed: uint8 [rows, K / 2] in torch's layout.
        scales_and_zeros: bf16 [G, rows, 2].
    """

    rows: slice
    packed: Tensor
    scales_and_zeros: Tensor


class TorchInt8Product:
    """torch's int8 product on the CPU, which knows one scale per output only.

    So the weights are rounded once more, to that scale. For many rows they become bf16 a piece at a time.
    """

    name = "torch int8 with one scale per output"

    def __init__(self, weight: QuantizedWeight) -> None:
        self.rows, self.columns = weight.rows, weight.columns
        self.integers = empty_pages((self.rows, self.columns), torch.int8)
        scales_N = torch.empty(self.rows)
        step = max(1, _DEQUANTISED_AT_ONCE // self.columns)
        for start in range(0, self.rows, step):
            piece = weight.take_rows(start, min(self.rows, start + step)).dequantise()
            scales = piece.abs().amax(-1) / 127
            divisor = torch.where(scales == 0, 1, scales)
            self.integers[start : start + step] = (piece / divisor[:, None]).round_().to(torch.int8)
            scales_N[start : start + step] = scales
        self.scales = scales_N.to(torch.bfloat16)
        self.float_dtype = torch.bfloat16 if supports_bfloat16(CPU) else torch.float32

    @staticmethod
    def obstacle(scheme: WeightScheme, rows: int, device: torch.device) -> str | None:
        """Why this form cannot take a weight, or None."""
        if scheme.bits != 8:
            return f"the weights have {scheme.bits} bits"
        if device.type != CPU.type:
            return f"the weights are on {device.type}"
        return None if hasattr(torch.ops.aten, "_weight_int8pack_mm") else "this torch has no int8 product"

    def __call__(self, x_MK: Tensor) -> Tensor:
        if x_MK.shape[0] < _MANY_ROWS_INT8:
            out: Tensor = torch.ops.aten._weight_int8pack_mm(
                x_MK.to(torch.bfloat16).contiguous(), self.integers, self.scales
            )
            return out.to(x_MK.dtype)
        x = x_MK.to(self.float_dtype)
        out = torch.empty(x.shape[0], self.rows, dtype=x.dtype)
        step = max(16, _MULTIPLIED_AT_ONCE // self.columns)
        for start in range(0, self.rows, step):
            rows = slice(start, start + step)
            torch.mul(F.linear(x, self.integers[rows].to(x.dtype)), self.scales[rows], out=out[:, rows])
        return out.to(x_MK.dtype)


class TritonProduct:
    """The Triton kernels, on the stored form itself."""

    name = "triton"

    def __init__(self, weight: QuantizedWeight) -> None:
        self.weight = weight

    @staticmethod
    def obstacle(scheme: WeightScheme, rows: int, device: torch.device) -> str | None:
        """Why this form cannot take a weight, or None."""
        return triton_obstacle(device)

    def __call__(self, x_MK: Tensor) -> Tensor:
        weight, scheme = self.weight, self.weight.scheme
        return triton_matmul.quantized_linear(
            x_MK, weight.qweight, weight.scales, bits=scheme.bits, group_size=scheme.group_size
        )


class KernelProduct:
    """The C kernels: activations are rounded to int8 by groups of 32."""

    name = "c"

    def __init__(self, weight: QuantizedWeight) -> None:
        self.context = shared_context(torch.get_num_threads())
        self.packed = pack_for_kernels(self.context, weight)

    @staticmethod
    def obstacle(scheme: WeightScheme, rows: int, device: torch.device) -> str | None:
        """Why this form cannot take a weight, or None."""
        return f"the weights are on {device.type}" if device.type != CPU.type else library.obstacle()

    def __call__(self, x_MK: Tensor) -> Tensor:
        x = x_MK if x_MK.dtype in (torch.float32, torch.bfloat16) else x_MK.float()
        return kernel_matmul(self.context, x.contiguous(), self.packed).to(x_MK.dtype)


def pack_for_kernels(context: Context, weight: QuantizedWeight) -> PackedWeight:
    """The weight in the C kernels' layout; no value passes through floats."""
    stored_as: WeightFormat = "int4" if weight.scheme.bits == 4 else "int8"
    return PackedWeight.pack_quantised(
        context, weight.integers(), weight.scales, stored_as, weight.scheme.group_size
    )


# In order of preference.
_FAST = (TritonProduct, KernelProduct, TorchInt4Product, TorchInt8Product)


def choose_product(weight: QuantizedWeight, name: str = "auto") -> ProductChoice:
    """The form for a weight.

    Args:
        name: `auto`, or the name of a form.

    Raises:
        DeviceError: the form asked for by name cannot run here, or the name is unknown.
    """
    if name == ReferenceProduct.name:
        return ProductChoice(name, ReferenceProduct(weight), "asked for by name")
    known = [form.name for form in _FAST]
    if name != "auto" and name not in known:
        raise DeviceError(
            f"Unknown product {name!r}.", hint=f"Choose auto, {', '.join([*known, ReferenceProduct.name])}."
        )
    obstacles = []
    for form in _FAST:
        if name not in ("auto", form.name):
            continue
        obstacle = form.obstacle(weight.scheme, weight.rows, weight.qweight.device)
        if obstacle is None:
            reason = "asked for by name" if name == form.name else "the fastest that can run here"
            return ProductChoice(form.name, form(weight), reason)
        obstacles.append(f"{form.name}: {obstacle}")
    if name != "auto":
        raise DeviceError(f"The product {obstacles[0]}.", hint="Choose auto.")
    return ProductChoice(ReferenceProduct.name, ReferenceProduct(weight), "; ".join(obstacles))


def _pack_int4(codes_NK: Tensor) -> Tensor:
    """torch's packed form, uint8 [N, K/2], of int32 codes of 0 to 15."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_NK, 1)
    return packed


@cache
def _int4_half_width() -> int | None:
    """Rows w of one half byte in torch's int4 layout, which depends on the processor; None if it is another.

    Rows go in blocks of 2w: [block][input][w], the first w rows in the lower halves of the bytes. torch does
    not document this; it is found by packing.
    """
    if not hasattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu"):
        return None
    rows, columns = 128, 64
    q_NK = torch.randint(16, (rows, columns), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    packed = _pack_int4(q_NK)
    for width in (32, 16):
        blocks = packed.view(-1, columns, width)
        codes = torch.stack([blocks & 15, blocks >> 4], 1)
        if torch.equal(codes.transpose(2, 3).reshape(rows, columns).int(), q_NK):
            return width
    return None
