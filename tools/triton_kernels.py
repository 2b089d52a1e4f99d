"""Compiles the Triton kernels for an NVIDIA GPU that need not be here, as a 7B model would launch them.

    python tools/triton_kernels.py                  # shared memory, registers and stack of each kernel
    python tools/triton_kernels.py --capability 80  # for an A100

Whether results are right, and how fast they come, a GPU tells: `pytest tests/device`, `make bench-gpu`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from telechat.ops.cuda import matmul, paged, rows
from telechat.ops.cuda.kernels import probe
from telechat.ops.paged import INT4, PagedCache, Sequences

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
MOST_SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
COLUMNS = ("launch", "kernel", "warps", "shared", "registers", "stack")


class Compiler:
    """Takes the place of launching: compiles what would have been launched and remembers what came out."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.rows: list[dict[str, Any]] = []
        self.launch = ""

    def run(self, kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """Stands in for `JITFunction.run`."""
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
        names = [parameter.name for parameter in kernel.params]
        given = dict(zip(names, args, strict=False)) | kwargs
        assert list(given) == names, f"{kernel} was launched with {list(given)}, it has {names}"
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(kernel.params):
            value = given[parameter.name]
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[parameter.name] = "constexpr"
                constants[(index,)] = value
                continue
            signature[parameter.name] = type_name(value)
            address = value.data_ptr() if isinstance(value, torch.Tensor) else value
            if isinstance(address, int) and address % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        target = GPUTarget("cuda", self.capability, 32)
        compiled = triton.compile(source, target=target, options=options)
        registers, stack = resources(compiled.asm["cubin"])
        found = (
            self.launch,
            kernel.__name__,
            compiled.metadata.num_warps,
            compiled.metadata.shared,
            registers,
            stack,
        )
        self.rows.append(dict(zip(COLUMNS, found, strict=True)))


def type_name(value: Any) -> str:
    """Triton's name of an argument's type."""
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def resources(binary: bytes) -> tuple[int, int]:
    """(registers of a thread, bytes of its stack, which holds what did not fit into registers)."""
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile("wb", suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(cuobjdump), "--dump-resource-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = (re.search(rf"{name}:(\d+)", report) for name in ("REG", "STACK"))
    assert registers is not None and stack is not None, report
    return int(registers[1]), int(stack[1])


def attention_launches(
    dtype: torch.dtype, cache_dtype: torch.dtype, heads: int, kv_heads: int, d: int
) -> None:
    """The write into the cache, a decode step over long sequences, and a chunk of a prompt."""
    cache = PagedCache.allocate(8, kv_heads, 16, d, dtype=cache_dtype)
    sequences = Sequences.of([1, 1], [60, 20], [[0, 1, 2, 3], [4, 5]])
    q, kv = torch.zeros(2, heads, d, dtype=dtype), torch.zeros(2, kv_heads, 2, d, dtype=dtype)
    table = torch.zeros(2, d)
    paged.rope_and_store(q, kv, table, table, torch.zeros(2, dtype=torch.int64), cache)
    for most_new, longest in ((1, 300), (1, 4096), (8, 4096), (512, 4096)):
        counted = Sequences(
            sequences.query_starts, sequences.kv_lengths, sequences.block_tables, most_new, longest
        )
        paged.paged_attention(q, cache, counted)


def row_launches(dtype: torch.dtype) -> None:
    """Norm and SwiGLU of a 7B model."""
    x, gate = torch.zeros(2, 4096, dtype=dtype), torch.zeros(2, 2 * 12288, dtype=dtype)
    rows.rms_norm(x, x[0], 1e-5)
    rows.rms_norm(x, x[0], 1e-5, add=x.clone())
    rows.swiglu(*gate.chunk(2, dim=1))
    probe.doubled[(1,)](x[0, :16].float(), x[0, :16].float(), BLOCK=16)


def matmul_launches(dtype: torch.dtype, group_size: int) -> None:
    """Linear layers of 4096 inputs for one row with every tile, for a batch and for a prompt."""
    n, k = 64, 4096
    x, weight = torch.zeros(1, k, dtype=dtype), torch.zeros(n, k, dtype=dtype)
    bias = weight[:, 0].contiguous()
    for tile in matmul.FLOAT_TILES:
        matmul.linear(x, weight, bias, tile=tile)
    matmul.linear(x, weight, bias, gated=True)
    scales = torch.zeros(n, k // group_size, dtype=torch.float16)
    for bits in (4, 8):
        packed = torch.zeros(n, k * bits // 8, dtype=torch.uint8 if bits == 4 else torch.int8)
        product = partial(
            matmul.quantized_linear, qweight=packed, scales=scales, bits=bits, group_size=group_size
        )
        for tile in matmul.tiles_for(bits):
            product(x, tile=tile)
        product(x, gated=True)
        for m in (8, 64, 200, matmul.MANY_ROWS):
            product(torch.zeros(m, k, dtype=dtype))


LAUNCHES: dict[str, Callable[[], None]] = {
    "bf16 rows": lambda: row_launches(torch.bfloat16),
    "bf16 attention": lambda: attention_launches(torch.bfloat16, torch.bfloat16, 32, 32, 128),
    "bf16 attention, 8 to 1": lambda: attention_launches(torch.bfloat16, torch.bfloat16, 64, 8, 128),
    "bf16 attention, int8 cache": lambda: attention_launches(torch.bfloat16, torch.int8, 32, 32, 128),
    "bf16 attention, int4 cache": lambda: attention_launches(torch.bfloat16, INT4, 32, 32, 128),
    "fp16 attention, int4 cache of 160": lambda: attention_launches(torch.float16, INT4, 32, 32, 160),
    "fp16 attention, head 160": lambda: attention_launches(torch.float16, torch.float16, 32, 32, 160),
    "fp32 attention": lambda: attention_launches(torch.float32, torch.float32, 32, 32, 128),
    "bf16 linear, groups of 128": lambda: matmul_launches(torch.bfloat16, 128),
    "fp16 linear, groups of 32": lambda: matmul_launches(torch.float16, 32),
}


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each kernel; 1 when one needs more shared memory than the GPU has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, default=90, choices=sorted(MOST_SHARED_BYTES))
    parser.add_argument("--only", default="", help="launches whose name contains this")
    args = parser.parse_args(arguments)
    compiler = Compiler(args.capability)
    JITFunction.run = lambda kernel, *given, **named: compiler.run(kernel, *given, **named)
    for name, launch in LAUNCHES.items():
        if args.only in name:
            compiler.launch = name
            launch()
    print("{:<28} {:<16} {:>5} {:>8} {:>9} {:>8}".format(*COLUMNS))
    for row in compiler.rows:
        print("{launch:<28} {kernel:<16} {warps:>5} {shared:>8} {registers:>9} {stack:>8}".format(**row))
    limit = MOST_SHARED_BYTES[args.capability]
    too_large = [row for row in compiler.rows if row["shared"] > limit]
    if too_large:
        print(f"{len(too_large)} kernels need more than {limit} bytes of shared memory", file=sys.stderr)
    return 1 if too_large else 0


if __name__ == "__main__":
    sys.exit(main())
