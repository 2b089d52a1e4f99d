"""`make bench-int8`: products of int8 activations and weights beside products in bf16.

    python -m benchmarks.int8_products
    python -m benchmarks.int8_products --rows 512 --shapes 4096x4096

Forms: our int8 and bf16 kernels, oneDNN's int8 product and torch's bf16 one. Ours take fp32 activations, as
the engine has them, and add to fp32; torch's take and give bf16. The forms take turns within a round; a
ratio is the median of the rounds' ratios. "Without quantising" is the time less that of the same product with
one panel of 16 outputs, which is hardly more than making the activations ready; for oneDNN it is the product
with integers made before. Never fails because of a figure.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks import record
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.matmul import matmul
from telechat.ops.cpu.weights import PackedWeight
from telechat.ops.int8 import ActivationRange, OneDnnProduct, StaticWeight

MODULE = "benchmarks.int8_products"
# Outputs x inputs of the layers of a 7B.
SHAPES = ("4096x4096", "12288x4096", "4096x12288")
GOAL_ROWS, GOAL = 512, 1.5
_PANEL = 16
_SECONDS_PER_TURN = 0.05

Form = Callable[[], object]


def forms(context: Context, rows: int, outputs: int, inputs: int) -> dict[str, Form]:
    """What is timed, by name."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=generator)
    few = torch.randn(_PANEL, inputs, generator=generator) * 0.02
    weight = few.repeat(outputs // _PANEL, 1)
    static = StaticWeight.from_float(weight, None, ActivationRange.spanning(-4.0, 4.0))
    one_panel = StaticWeight.from_float(few, None, static.inputs)
    packed, packed_panel = (PackedWeight.pack_w8a8(context, each) for each in (static, one_panel))
    bf16, bf16_panel = (PackedWeight.pack(context, each, "bfloat16") for each in (weight, few))
    half, half_weight = x.bfloat16(), weight.bfloat16()
    # Results go where there is memory already, as in the engine.
    out, out_panel, half_out = (
        torch.zeros(rows, outputs),
        torch.zeros(rows, _PANEL),
        half.new_empty(rows, outputs),
    )
    found: dict[str, Form] = {
        "int8": lambda: matmul(context, x, packed, add_to=out),
        "int8, one panel": lambda: matmul(context, x, packed_panel, add_to=out_panel),
        "bf16": lambda: matmul(context, x, bf16, add_to=out),
        "bf16, one panel": lambda: matmul(context, x, bf16_panel, add_to=out_panel),
        "torch bf16": lambda: torch.mm(half, half_weight.t(), out=half_out),
    }
    if OneDnnProduct.obstacle(torch.device("cpu")) is None:
        product, quantised = OneDnnProduct(static), static.inputs.quantise(half, is_unsigned=True)
        found["onednn int8"] = lambda: product(half)
        found["onednn int8, quantised before"] = lambda: product.multiply(quantised, torch.bfloat16)
    return found


def seconds(form: Form, repeats: int) -> float:
    """Of one call, the mean of several."""
    start = time.perf_counter()
    for _ in range(repeats):
        form()
    return (time.perf_counter() - start) / repeats


def take_turns(by_name: Mapping[str, Form], rounds: int) -> dict[str, list[float]]:
    """Seconds of each form in each round, after one that warms up."""
    repeats = {name: max(1, int(_SECONDS_PER_TURN / seconds(form, 2))) for name, form in by_name.items()}
    times: dict[str, list[float]] = {name: [] for name in by_name}
    for _ in range(rounds):
        for name, form in by_name.items():
            times[name].append(seconds(form, repeats[name]))
    return times


def ratios(times: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """What int8 gains, in each round."""

    def less(name: str, panel: str) -> list[float]:
        return [whole - part for whole, part in zip(times[name], times[panel], strict=True)]

    pairs = {
        "int8 to bf16": (times["bf16"], times["int8"]),
        "int8 to bf16, without quantising": (
            less("bf16", "bf16, one panel"),
            less("int8", "int8, one panel"),
        ),
        "int8 to torch bf16": (times["torch bf16"], times["int8"]),
    }
    if "onednn int8" in times:
        pairs["onednn int8 to torch bf16"] = (times["torch bf16"], times["onednn int8"])
        before = times["onednn int8, quantised before"]
        pairs["onednn int8 to torch bf16, without quantising"] = (times["torch bf16"], before)
        pairs["int8 to onednn int8"] = (times["onednn int8"], times["int8"])
    return {
        name: [slow / fast for slow, fast in zip(slows, fasts, strict=True)]
        for name, (slows, fasts) in pairs.items()
    }


def measure(context: Context, rows: int, shape: str, rounds: int) -> dict[str, Any]:
    """One number of rows and one shape: figures."""
    outputs, inputs = map(int, shape.split("x"))
    times = take_turns(forms(context, rows, outputs, inputs), rounds)
    by_round = ratios(times)
    operations = 2 * rows * outputs * inputs
    return {
        "rows": rows,
        "shape": shape,
        "milliseconds": {name: round(1000 * statistics.median(each), 4) for name, each in times.items()},
        "tera_operations_per_second": {
            name: round(operations / statistics.median(each) / 1e12, 3)
            for name, each in times.items()
            if "one panel" not in name
        },
        "ratios": {name: round(statistics.median(each), 3) for name, each in by_round.items()},
        "rounds": {name: [round(value, 3) for value in each] for name, each in by_round.items()},
    }


def main(words: Sequence[str]) -> int:
    """Measure, print, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="OUTPUTSxINPUTS")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-report", action="store_true", help="print the figures only")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    context = Context(args.threads)
    head = record.record(MODULE, words, rounds=args.rounds, threads=args.threads, isa=context.isa)
    figures = []
    for shape in args.shapes:
        for rows in args.rows:
            found = measure(context, rows, shape, args.rounds)
            figures.append(found)
            for name, value in found["ratios"].items():
                has_goal = rows == GOAL_ROWS and name.startswith("int8") and name.endswith("bf16")
                goal = f"  (goal {GOAL})" if has_goal else ""
                print(f"{shape:>12}  {rows:4} rows  {name:48} {value:6.2f}{goal}", flush=True)
    if not args.no_report:
        record.write(
            "int8-products", {**head, "goal": {"rows": GOAL_ROWS, "ratio": GOAL}, "figures": figures}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
