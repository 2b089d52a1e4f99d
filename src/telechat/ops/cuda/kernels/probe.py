"""The smallest kernel: shows whether Triton can compile for a device and launch there."""

import triton
import triton.language as tl


@triton.jit
def doubled(x, out, BLOCK: tl.constexpr):
    """out [BLOCK] = 2 * x."""
    places = tl.arange(0, BLOCK)
    tl.store(out + places, 2.0 * tl.load(x + places))
