"""What every launch of a Triton kernel needs to know: whether it can run here, where, and on which operands.

Imports triton only when asked to. Knows nothing of what the kernels compute.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from functools import cache
from typing import Any

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# What Triton's `sm_75` and older cannot do: bf16, and copies that overlap with arithmetic.
_LEAST_CAPABILITY = (8, 0)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: slow, for tests.

    Triton decides it when it is first imported, by the same variable.
    """
    return os.environ.get("TRITON_INTERPRET", "") in ("1", "true", "on", "yes")


def triton_obstacle(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on this device, or None."""
    if device.type != "cuda":
        return f"Triton kernels run on CUDA devices, this model is on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        return f"Triton kernels need compute capability 8.0, this device has {'.'.join(map(str, capability))}"
    if interpreted():
        return "TRITON_INTERPRET is set"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton does not import ({error})"
    return _launch_obstacle(device)


@cache
def _launch_obstacle(device: torch.device) -> str | None:
    """Why the smallest kernel does not run here, or None. Triton needs a C compiler, among other things, and
    says so only when it launches for the first time.
    """
    from triton.errors import TritonError

    from telechat.ops.cuda.kernels import probe

    x, out = torch.ones(16, device=device), torch.zeros(16, device=device)
    try:
        with on_device(x):
            probe.doubled[(1,)](x, out, BLOCK=16)
        return None if bool((out == 2).all()) else "Triton's smallest kernel gives wrong results here"
    except (TritonError, RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"Triton cannot launch here ({lines[0]})"


def dtype_obstacle(*dtypes: torch.dtype) -> str | None:
    """Why the kernels do not take these dtypes, or None."""
    for dtype in dtypes:
        if dtype not in _FLOATS:
            return f"Triton kernels take fp32, bf16 and fp16, not {str(dtype).removeprefix('torch.')}"
    return None


def operand(dtype: torch.dtype) -> tuple[Any, str]:
    """Triton's dtype for the operands of a matrix product of tensors of `dtype`, and its input precision.

    The interpreter multiplies in numpy, which has no bf16.
    """
    import triton.language as tl

    if dtype == torch.float32 or interpreted():
        return tl.float32, "ieee"
    return (tl.bfloat16 if dtype == torch.bfloat16 else tl.float16), "tf32"


def next_power_of_2(value: int) -> int:
    """The least power of two that is not below `value`."""
    return 1 << max(value - 1, 0).bit_length()


def num_processors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; 1 in the interpreter."""
    return 1 if device.type != "cuda" else _num_processors(device)


@cache
def _num_processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensor's device the present one, which is where Triton launches."""
    if tensor.device.type != "cuda":
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)
