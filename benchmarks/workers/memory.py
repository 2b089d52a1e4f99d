"""Worker: how fast this machine reads memory, with all threads at once.

python -m benchmarks.workers.memory
"""

from __future__ import annotations

import mmap
import sys
import time

import torch

from benchmarks.workers.loop import Case, Result, serve

NUM_BYTES = 512 * 2**20
READINGS = 6


def open_worker() -> tuple[dict[str, Case], dict[str, object]]:
    """One case: the best of some readings of half a gigabyte, in huge pages as the kernels' weights are."""
    memory = mmap.mmap(-1, NUM_BYTES)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        memory.madvise(advice)
    matrix = torch.frombuffer(memory, dtype=torch.float32).fill_(1).view(-1, 4096)
    vector = torch.ones(4096)

    def read() -> Result:
        best = float("inf")
        for _ in range(READINGS):
            start = time.perf_counter()
            torch.mv(matrix, vector)  # reads faster than sum does: at the memory's limit
            best = min(best, time.perf_counter() - start)
        return {"gigabytes": NUM_BYTES / 1e9, "seconds": best}

    return {"read": read}, {"threads": torch.get_num_threads(), "huge_pages": advice is not None}


if __name__ == "__main__":
    sys.exit(serve(open_worker))
