"""Worker: how fast this machine reads memory, with all threads at once.

python -m benchmarks.workers.memory
"""

from __future__ import annotations

import sys
import time

import torch

from benchmarks.workers.loop import Case, Result, serve

NUM_BYTES = 512 * 2**20


def open_worker() -> tuple[dict[str, Case], dict[str, object]]:
    """One case: the best of three readings of half a gigabyte."""
    buffer = torch.ones(NUM_BYTES // 4)

    def read() -> Result:
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            buffer.sum()
            best = min(best, time.perf_counter() - start)
        return {"gigabytes": NUM_BYTES / 1e9, "seconds": best}

    return {"read": read}, {"threads": torch.get_num_threads()}


if __name__ == "__main__":
    sys.exit(serve(open_worker))
