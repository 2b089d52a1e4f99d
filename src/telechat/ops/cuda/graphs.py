"""Recording a sequence of launches once and replaying it as one, by CUDA graphs.

Knows nothing of what is recorded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from telechat.ops.fused import Record, Replay


class CudaRecorder:
    """Records on one device; all recordings share one pool of memory, so only one may run at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Record) -> tuple[Replay, Tensor]:
        """Run `run` until everything it needs is compiled and allocated, then record it.

        Returns what replays it, and the tensor that every replay leaves its result in.
        """
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                result = run()
        return graph.replay, result
