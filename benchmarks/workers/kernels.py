"""Worker: a decoder of one shape in one call of the C kernels, without an engine.

    python -m benchmarks.workers.kernels --shape M --format int4 --threads 2

The difference to the engine's figures is what scheduling, sampling and embedding cost.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Sequence

import torch

from benchmarks.shapes import BITS, SHAPES, Shape
from benchmarks.workers.loop import Case, Result, serve
from telechat.ops.cpu.cache import allocate_cache
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.decoder import Decoder, DecoderLayer
from telechat.ops.cpu.weights import PackedWeight, WeightFormat
from telechat.ops.paged import Sequences

BLOCK_SIZE = 32
MAX_BATCH = 8
MAX_TOKENS = 1280
FORMATS: dict[str, WeightFormat] = {"int4": "int4", "int8": "int8", "bf16": "compact"}


def random_weight(context: Context, rows: int, columns: int, weight_format: WeightFormat) -> PackedWeight:
    """Sixteen random rows, repeated: the kernels' time does not depend on values."""
    values = torch.randn(16, columns) * 0.02
    if weight_format == "compact":  # whose parts do not stand alone
        return PackedWeight.pack(context, values.bfloat16().repeat(-(-rows // 16), 1)[:rows], weight_format)
    few = PackedWeight.pack(context, values, weight_format)
    weight = PackedWeight(context, rows, columns, weight_format, few.group)
    for start in range(0, weight.num_bytes, few.num_bytes):
        ctypes.memmove(weight.struct.data + start, few.struct.data, few.num_bytes)
    return weight


def random_layer(context: Context, shape: Shape, weight_format: WeightFormat) -> DecoderLayer:
    """Weights of one layer."""

    def weight(rows: int, columns: int) -> PackedWeight:
        return random_weight(context, rows, columns, weight_format)

    hidden, ffn = shape.hidden, shape.ffn
    return DecoderLayer(
        query=weight(hidden, hidden),
        key_value=weight(2 * hidden, hidden),
        dense=weight(hidden, hidden),
        gate=weight(ffn, hidden),
        up=weight(ffn, hidden),
        down=weight(hidden, ffn),
        input_norm=torch.ones(hidden),
        post_norm=torch.ones(hidden),
        dense_bias=torch.zeros(hidden),
        down_bias=torch.zeros(hidden),
    )


class Kernels:
    """A decoder of random weights and a bf16 cache for eight sequences."""

    def __init__(self, context: Context, shape: Shape, weight_format: WeightFormat) -> None:
        self.hidden, self.head_dim = shape.hidden, shape.hidden // shape.num_heads
        layers = [random_layer(context, shape, weight_format) for _ in range(shape.num_layers)]
        self.blocks_per_sequence = MAX_TOKENS // BLOCK_SIZE
        num_blocks = MAX_BATCH * self.blocks_per_sequence
        caches = [
            allocate_cache(context, num_blocks, shape.num_heads, BLOCK_SIZE, self.head_dim, torch.bfloat16)
            for _ in layers
        ]
        head = random_weight(context, shape.vocab, shape.hidden, weight_format)
        self.decoder = Decoder(
            context, layers, caches, torch.ones(shape.hidden), head, num_heads=shape.num_heads, eps=1e-5
        )

    def run(self, num_sequences: int, num_new: int, past: int) -> float:
        """Seconds of one call in which each sequence gets `num_new` tokens; logits of the last ones."""
        per_sequence = self.blocks_per_sequence
        tables = [list(range(s * per_sequence, (s + 1) * per_sequence)) for s in range(num_sequences)]
        total = num_sequences * num_new
        span = range(past, past + num_new)
        slots = torch.tensor(
            [table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for table in tables for p in span]
        )
        sequences = Sequences.of(
            [num_new] * num_sequences,
            [past + num_new] * num_sequences,
            tables,
            num_decoding=num_sequences if num_new == 1 else 0,
        )
        x, angles = torch.randn(total, self.hidden), torch.rand(total, self.head_dim)
        last = torch.arange(num_new - 1, total, num_new)
        start = time.perf_counter()
        self.decoder(x, angles.cos(), angles.sin(), slots, sequences, last)
        return time.perf_counter() - start

    def decode(self, *, batch: int, prompt: int, steps: int) -> Result:
        """Seconds of `steps` decoding steps after `prompt` cached tokens."""
        seconds = sum(self.run(batch, 1, prompt + step) for step in range(steps))
        return {"tokens": float(batch * steps), "seconds": seconds}

    def prefill(self, *, prompt: int) -> Result:
        """Seconds of one prompt."""
        return {"tokens": float(prompt), "seconds": self.run(1, prompt, 0)}


def open_worker(words: Sequence[str]) -> tuple[dict[str, Case], dict[str, object]]:
    """Make the decoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--format", choices=BITS, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    context = Context(args.threads)
    kernels = Kernels(context, SHAPES[args.shape], FORMATS[args.format])
    return {"decode": kernels.decode, "prefill": kernels.prefill}, {"isa": context.isa}


if __name__ == "__main__":
    sys.exit(serve(lambda: open_worker(sys.argv[1:])))
