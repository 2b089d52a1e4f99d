"""`make bench-codec`: the codec of sparse weights (W8A8SC), how small it makes them and how fast it decodes.

    python -m benchmarks.codec

Three weights, each made sparse as `telechat quantize run --fraction 0.011 --co-sparse True` does: Gaussian
numbers; the same with some large ones and some columns of large ones; and the int8 layers of the demo model,
put together. A round decodes each once in one thread, checksums included; of the rounds' times the median
counts, by the thread's own clock, which leaves out what other programs take, and by the wall's. Every result
is compared with what was encoded. A figure never fails the run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record

MODULE = "benchmarks.codec"
LARGEST_RATIO = 0.75
LEAST_MB_PER_S = 500.0


def sparse_weights(size: int, fraction: float) -> dict[str, Any]:
    """int8 [N, K] by name, sparse."""
    import torch

    from telechat.checkpoint import load_model
    from telechat.models import parameter_table
    from telechat.ops.int8 import quantise_rows_sparsely

    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(size, size, generator=generator) * 0.02
    outliers = gaussian.clone()
    outliers[torch.rand(size, size, generator=generator) < 0.005] *= 8
    outliers[:, ::511] *= 6
    demo = load_model("demo", device="cpu", dtype="float32")
    layers = [
        quantise_rows_sparsely(demo.get_parameter(p.name).detach(), fraction)[0]
        for p in parameter_table(demo.config)
        if p.kind == "linear" and not p.name.endswith("down_proj.weight")
    ]
    return {
        f"gaussian {size} x {size}": quantise_rows_sparsely(gaussian, fraction)[0],
        f"gaussian with outliers {size} x {size}": quantise_rows_sparsely(outliers, fraction)[0],
        "demo model, its int8 layers": torch.cat([layer.view(-1, layer.shape[1]) for layer in layers]),
    }


def measure(weight: Any, rounds: int) -> dict[str, float | bool]:
    """Ratio, exactness and speed of one weight, int8 [N, K]."""
    import torch

    from telechat.checkpoint.nibbles import decode, encode

    began = time.thread_time()
    encoded = encode(weight)
    encode_s = time.thread_time() - began
    is_exact = torch.equal(decode(encoded, "weight"), weight)  # and warms up
    thread_s, wall_s = [], []
    for _ in range(rounds):
        starts = time.thread_time(), time.perf_counter()
        decode(encoded, "weight")
        thread_s.append(time.thread_time() - starts[0])
        wall_s.append(time.perf_counter() - starts[1])
    megabytes = weight.nbytes / 1e6
    large = int(((weight > 7) | (weight < -7)).sum())
    return {
        "megabytes": round(megabytes, 2),
        "large_share": round(large / weight.numel(), 5),
        "ratio": round(encoded.num_bytes / weight.nbytes, 4),
        "bit_exact": is_exact,
        "decode_mb_per_s_of_a_core": round(megabytes / statistics.median(thread_s), 1),
        "decode_mb_per_s_by_the_wall": round(megabytes / statistics.median(wall_s), 1),
        "encode_mb_per_s_of_a_core": round(megabytes / encode_s, 1),
    }


def main(words: Sequence[str]) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns (default: 4096)")
    parser.add_argument("--fraction", type=float, default=0.011, help="share kept large (default: 0.011)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count (default: 9)")
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="folder of the result")
    args = parser.parse_args(words)
    import torch

    torch.set_num_threads(1)
    report = record.record(MODULE, words, goals={"ratio": LARGEST_RATIO, "mb_per_s": LEAST_MB_PER_S})
    rows = {
        name: measure(weight, args.rounds)
        for name, weight in sparse_weights(args.size, args.fraction).items()
    }
    for name, row in rows.items():
        print(
            f"{name}: {row['ratio']:.3f} of its size, {row['decode_mb_per_s_of_a_core']:.0f} MB/s decoded by "
            f"a core ({row['decode_mb_per_s_by_the_wall']:.0f} by the wall), exact: {row['bit_exact']}"
        )
    record.write("codec", {**report, "weights": rows}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
