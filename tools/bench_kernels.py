"""Times a decoder of one shape with the CPU kernels, beside the memory bandwidth of the same run.

    python tools/bench_kernels.py --shape M --rounds 5 --json results.json

Formats and batch sizes take turns within a round, the bandwidth probe first; a figure is the median over the
rounds. Shapes: M has 6 layers of hidden 4096, S has 12 of 1536.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from telechat.ops.cpu.context import Context
from telechat.ops.cpu.decoder import Decoder, DecoderLayer
from telechat.ops.cpu.weights import FORMATS, PackedWeight, WeightFormat
from telechat.ops.paged import PagedCache, Sequences

# layers, hidden, ffn, heads, vocabulary
SHAPES = {"M": (6, 4096, 12288, 32, 32000), "S": (12, 1536, 4096, 12, 32000), "tiny": (2, 256, 512, 4, 1000)}
PROMPT = 64
BLOCK_SIZE = 32


def random_weight(context: Context, rows: int, columns: int, weight_format: WeightFormat) -> PackedWeight:
    """Sixteen random rows, repeated: the kernels' time does not depend on values."""
    few = PackedWeight.pack(context, torch.randn(16, columns) * 0.02, weight_format)
    weight = PackedWeight(context, rows, columns, weight_format, few.group)
    for start in range(0, weight.num_bytes, few.num_bytes):
        ctypes.memmove(weight.struct.data + start, few.struct.data, few.num_bytes)
    return weight


class Bench:
    """A decoder of random weights and a cache for eight sequences of some hundred tokens."""

    def __init__(self, context: Context, shape: str, weight_format: WeightFormat, max_tokens: int) -> None:
        num_layers, hidden, ffn, heads, vocab = SHAPES[shape]
        self.hidden, self.head_dim = hidden, hidden // heads

        def layer() -> DecoderLayer:
            return DecoderLayer(
                query=random_weight(context, hidden, hidden, weight_format),
                key_value=random_weight(context, 2 * hidden, hidden, weight_format),
                dense=random_weight(context, hidden, hidden, weight_format),
                gate=random_weight(context, ffn, hidden, weight_format),
                up=random_weight(context, ffn, hidden, weight_format),
                down=random_weight(context, hidden, ffn, weight_format),
                input_norm=torch.ones(hidden),
                post_norm=torch.ones(hidden),
                dense_bias=torch.zeros(hidden),
                down_bias=torch.zeros(hidden),
            )

        layers = [layer() for _ in range(num_layers)]
        self.blocks_per_sequence = -(-max_tokens // BLOCK_SIZE)
        cache_shape = (8 * self.blocks_per_sequence, heads, BLOCK_SIZE, self.head_dim)
        caches = [
            PagedCache(*(torch.zeros(cache_shape, dtype=torch.bfloat16) for _ in range(2))) for _ in layers
        ]
        head = random_weight(context, vocab, hidden, weight_format)
        self.decoder = Decoder(context, layers, caches, torch.ones(hidden), head, num_heads=heads, eps=1e-5)
        names = ("query", "key_value", "dense", "gate", "up", "down")
        per_layer = [getattr(layers[0], name) for name in names]
        self.num_bytes = head.num_bytes + num_layers * sum(weight.num_bytes for weight in per_layer)

    def run(self, num_sequences: int, num_new: int, past: int) -> float:
        """Seconds of one call in which each sequence gets `num_new` tokens; logits of the last ones."""
        tables = [
            list(range(s * self.blocks_per_sequence, (s + 1) * self.blocks_per_sequence))
            for s in range(num_sequences)
        ]
        total = num_sequences * num_new
        span = range(past, past + num_new)
        slots = torch.tensor(
            [table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for table in tables for p in span]
        )
        sequences = Sequences.of([num_new] * num_sequences, [past + num_new] * num_sequences, tables)
        x, angles = torch.randn(total, self.hidden), torch.rand(total, self.head_dim)
        last = torch.arange(num_new - 1, total, num_new)
        start = time.perf_counter()
        self.decoder(x, angles.cos(), angles.sin(), slots, sequences, last)
        return time.perf_counter() - start


def read_bandwidth(buffer: torch.Tensor) -> float:
    """GB/s of reading memory with all threads, best of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        buffer.sum()
        seconds.append(time.perf_counter() - start)
    return float(buffer.numel() * buffer.element_size() / min(seconds) / 1e9)


def cases(bench: Bench, steps: int) -> dict[str, tuple[Callable[[], float], int]]:
    """Name -> (seconds of the case, tokens it makes)."""

    def decode(batch: int) -> Callable[[], float]:
        return lambda: sum(bench.run(batch, 1, PROMPT + step) for step in range(steps))

    return {
        "decode b1": (decode(1), steps),
        "decode b8": (decode(8), 8 * steps),
        "prefill 512": (lambda: bench.run(1, 512, 0), 512),
    }


def main(words: list[str]) -> int:
    """Print a table of tokens per second, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="M")
    parser.add_argument("--formats", nargs="+", default=["int4"], choices=FORMATS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="decoding steps per round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    context = Context(args.threads)
    benches = {name: Bench(context, args.shape, name, 640) for name in args.formats}
    buffer = torch.ones(128 * 2**20)
    bandwidths, seconds = [], {}
    for round_number in range(args.rounds + 1):
        bandwidths.append(read_bandwidth(buffer))
        for weight_format, bench in benches.items():
            for name, (case, num_tokens) in cases(bench, args.steps).items():
                spent = case() / num_tokens
                if round_number:  # the first round warms up
                    seconds.setdefault((weight_format, name), []).append(spent)
    bandwidth = statistics.median(bandwidths)
    print(f"shape {args.shape}, {args.threads} threads, {context.isa}, memory {bandwidth:.1f} GB/s")
    rows = []
    for (weight_format, name), spent in seconds.items():
        rate = 1 / statistics.median(spent)
        row = {"format": weight_format, "case": name, "tokens_per_second": round(rate, 2)}
        if name == "decode b1":
            row["share_of_bandwidth"] = round(rate * benches[weight_format].num_bytes / 1e9 / bandwidth, 3)
        rows.append(row)
        print(row)
    if args.json:
        report = {
            "date": datetime.date.today().isoformat(),
            "machine": platform.processor() or platform.machine(),
            "isa": context.isa,
            "threads": args.threads,
            "shape": args.shape,
            "memory_gb_per_s": round(bandwidth, 2),
            "command": "tools/bench_kernels.py " + " ".join(words),
            "results": rows,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
