"""`make bench-soak`: resident memory while the demo model answers 20,000 short requests.

    python -m benchmarks.soak --requests 20000

The service's engine, 64 requests at a time; memory of its processes after every 250. The figure is the slope
over the last half, in MB per 1,000 requests. A figure never fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import record
from benchmarks.harness import say
from benchmarks.table import Outcome, Place, Row, lines

MODULE = "benchmarks.soak"
EVERY = 250
LIMIT_MB = 1.0


def resident_mb(process: int) -> float:
    """Resident memory of a process and its children, MB (10^6 bytes)."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    total = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            total += resident_mb(int(child))
    return total


def slope(samples: Sequence[tuple[int, float]]) -> float:
    """MB per 1,000 requests over the last half of (requests done, MB)."""
    half = samples[len(samples) // 2 :]
    fit = statistics.linear_regression([done / 1000 for done, _ in half], [memory for _, memory in half])
    return fit.slope


async def soak(num_requests: int, num_at_once: int) -> list[tuple[int, float]]:
    """Answer requests; (requests done, resident MB) after every 250."""
    from telechat import LLM, SamplingParams
    from telechat.engine import AsyncEngine

    engine = AsyncEngine(LLM("demo"))
    source = random.Random(0)
    vocab = engine.llm.config.vocab_size
    left = iter(range(num_requests))
    samples: list[tuple[int, float]] = []
    num_done = 0

    async def client() -> None:
        nonlocal num_done
        for _ in left:
            prompt = source.choices(range(16, vocab), k=source.randint(4, 48))
            params = SamplingParams(max_tokens=source.randint(1, 12), seed=source.getrandbits(30))
            async for _ in engine.stream(prompt, params):
                pass
            num_done += 1
            if num_done % EVERY == 0:
                samples.append((num_done, resident_mb(os.getpid())))

    try:
        await asyncio.gather(*(client() for _ in range(num_at_once)))
    finally:
        engine.close()
    return samples


def main(words: Sequence[str]) -> int:
    """Run, print, write JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--at-once", type=int, default=64)
    args = parser.parse_args(words)
    if args.requests < 4 * EVERY:
        parser.error(f"--requests must be at least {4 * EVERY}")
    say(f"{args.requests} requests, {args.at_once} at a time")
    start = time.monotonic()
    head = record.record(MODULE, words)
    samples = asyncio.run(soak(args.requests, args.at_once))
    seconds = time.monotonic() - start
    rise = slope(samples)
    row = Row(
        f"memory over {args.requests} requests",
        Place("soak", "telechat"),
        unit="MB per 1,000",
        goal=LIMIT_MB,
        floor=LIMIT_MB,
        lower_is_better=True,
    )
    result = Outcome(row, value=rise, ours=samples[-1][1])
    record.write("soak", {**head, "seconds": round(seconds), "rows": [result.entry()], "samples": samples})
    print("\n".join([*lines([result]), f"{args.requests / seconds:.0f} requests per second"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
