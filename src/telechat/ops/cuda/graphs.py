"""Recording a sequence of launches once and replaying it as one, by CUDA graphs.

Knows nothing of what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from telechat.ops.fused import Replay


class CudaRecorder:
    """Records on one device; all recordings share one pool of memory, so only one may run at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: libraries keep a workspace for each stream that they have ever been called on.
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, run: Callable[[], None]) -> Replay:
        """Run `run` until everything it needs is compiled and allocated, then record it; not run by that."""
        with torch.cuda.device(self._device):
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                for _ in range(2):
                    run()
            torch.cuda.current_stream().wait_stream(self._side)
            graph = torch.cuda.CUDAGraph()
            # What other threads of this process do on the device meanwhile is their own affair.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"
            ):
                run()
        return graph.replay
