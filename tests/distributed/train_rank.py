"""One rank of a training test: runs every case it is given, in one process. A program.

`python -m tests.distributed.train_rank FOLDER` with RANK and WORLD_SIZE; FOLDER holds cases.json and
receives a file for each case.
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


def main(folder: Path) -> None:
    """Run the cases; rank 0 writes the results, any rank the error that it met."""
    torch.set_num_threads(1)
    # Ranks that wait for each other say where.
    faulthandler.dump_traceback_later(float(os.environ["RANK_TIMEOUT_S"]), exit=True)
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
