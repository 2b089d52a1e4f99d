"""The ranks of a training test: each runs every case, in one process. A program.

`python -m tests.distributed.train_rank FOLDER SIZE TIMEOUT_S`; FOLDER holds cases.json and receives a file
for each case.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.distributed import train_cases
from tests.distributed.train_cases import Case
from tests.distributed.train_forks import in_processes


def run_cases(folder: Path, timeout_s: float) -> None:
    """Run the cases; rank 0 writes the results, any rank the error that it met."""
    # Ranks that wait for each other say where.
    faulthandler.dump_traceback_later(timeout_s, exit=True)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    for raw in json.loads((folder / "cases.json").read_text()):
        case = Case(**raw)
        try:
            found: dict[str, Any] = train_cases.run_case(case, folder)
        except Exception:  # noqa: BLE001 - the test shows it; without an end the other ranks would wait
            (folder / f"{case.name}-{rank}.error").write_text(f"rank {rank}:\n{traceback.format_exc()}")
            os._exit(1)
        if rank == 0:
            torch.save(found, folder / f"{case.name}.pt")
    dist.barrier()
    dist.destroy_process_group()


def main(folder: Path, size: int, timeout_s: float) -> None:
    """Fork the ranks and wait for them."""
    # Forks share no threads with their parent, so it may not have any.
    torch.set_num_threads(1)
    in_processes(size, lambda: run_cases(folder, timeout_s), folder, timeout_s + 10)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
