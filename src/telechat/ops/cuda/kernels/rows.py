"""What is done row by row between the matrix products: RMS norm with the residual sum, and SwiGLU."""

import triton
import triton.language as tl


@triton.jit
def rms_norm(
    x, add, weight, out, width, eps, x_stride, add_stride, out_stride,
    ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row): weight * round(x / rms(x)); with ADD first x += add, rounded to x's dtype."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    live = places < width
    dtype = x.dtype.element_ty
    values = tl.load(x + row * x_stride + places, mask=live, other=0.0).to(tl.float32)
    if ADD:
        values += tl.load(add + row * add_stride + places, mask=live, other=0.0).to(tl.float32)
        rounded = values.to(dtype)
        tl.store(x + row * x_stride + places, rounded, mask=live)
        values = rounded.to(tl.float32)
    mean_square = tl.sum(values * values, 0) / width
    normed = (values * tl.rsqrt(mean_square + eps)).to(dtype).to(tl.float32)
    scaled = normed * tl.load(weight + places, mask=live, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + places, scaled.to(dtype), mask=live)


@triton.jit
def swiglu(gate, up, out, width, gate_stride, up_stride, out_stride, BLOCK: tl.constexpr):
    """Program (row, block): silu(gate), rounded to the dtype, times up."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = places < width
    dtype = gate.dtype.element_ty
    gates = tl.load(gate + row * gate_stride + places, mask=live, other=0.0).to(tl.float32)
    ups = tl.load(up + row * up_stride + places, mask=live, other=0.0).to(tl.float32)
    opened = (gates / (1.0 + tl.exp(-gates))).to(dtype).to(tl.float32)
    tl.store(out + row * out_stride + places, (opened * ups).to(dtype), mask=live)
