"""The products of a model on a CUDA device, each with the tile that is fastest there.

Which tile keeps a device's memory busiest is found by trying, once for each size of weight, while the model
is made ready: before the cache takes the memory, and before anything is recorded. Knows nothing of layers.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from telechat.ops.cuda.matmul import Tile, linear, quantized_linear, tiles_for
from telechat.ops.fused import Projection
from telechat.ops.quantized import QuantizedWeight

log = logging.getLogger(__name__)

_ROUNDS = 7
# What a trial may find in the device's second-level cache must not be the weight.
_CACHES_OVERWRITTEN = 2
# So that the device is still busy with these when the run reaches it, and no waiting for the host is timed.
_OVERWRITES = 5

# (run with this tile) -> milliseconds.
Timing = Callable[[Callable[[], Tensor]], float]


class Products:
    """Makes products, remembering the best tile for each kind and size.

    Args:
        timing: how long a run takes; None: do not try, take the first tile.
    """

    def __init__(self, timing: Timing | None) -> None:
        self._timing = timing
        self._chosen: dict[Hashable, Tile] = {}

    def bind_linear(self, weight: Tensor, bias: Tensor | None, *, gated: bool = False) -> Projection:
        """As `telechat.ops.fused.BindLinear`."""
        run = partial(linear, weight=weight, bias=bias, gated=gated)
        key = ("float", weight.shape, weight.dtype, gated)
        x = weight.new_zeros(1, weight.shape[1])
        return partial(run, tile=self._tile(key, tiles_for(None), lambda tile: run(x, tile=tile)))

    def bind_quantized(
        self, weight: QuantizedWeight, bias: Tensor | None, *, gated: bool = False, dtype: torch.dtype
    ) -> Projection:
        """As `telechat.ops.fused.BindQuantized`.

        Args:
            dtype: of the activations to come.
        """
        bits, group_size = weight.scheme.bits, weight.scheme.group_size
        run = partial(
            quantized_linear,
            qweight=weight.qweight,
            scales=weight.scales,
            bits=bits,
            group_size=group_size,
            bias=bias,
            gated=gated,
        )
        key = (weight.scheme, weight.qweight.shape, gated)
        x = torch.zeros(1, weight.columns, dtype=dtype, device=weight.qweight.device)
        return partial(run, tile=self._tile(key, tiles_for(bits), lambda tile: run(x, tile=tile)))

    def _tile(self, key: Hashable, tiles: Sequence[Tile], run: Callable[[Tile], Tensor]) -> Tile:
        if self._timing is None or len(tiles) == 1:
            return tiles[0]
        if key not in self._chosen:
            taken = {tile: self._timing(partial(run, tile)) for tile in tiles}
            self._chosen[key] = best = min(taken, key=taken.__getitem__)
            log.info("one-row product %s: %s, %.1f us", key, best, 1000 * taken[best])
        return self._chosen[key]


def device_time(device: torch.device) -> Timing:
    """Measures runs on a CUDA device, each with its inputs in memory and not in a cache."""
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size

    def timing(run: Callable[[], Tensor]) -> float:
        overwritten = torch.empty(_CACHES_OVERWRITTEN * cache_bytes, dtype=torch.int8, device=device)
        run()  # compiles
        times = []
        with torch.cuda.device(device):
            for _ in range(_ROUNDS):
                for _ in range(_OVERWRITES):
                    overwritten.zero_()
                begin, end = (torch.Event(device, enable_timing=True) for _ in range(2))
                begin.record()
                run()
                end.record()
                end.synchronize()
                times.append(float(begin.elapsed_time(end)))
        return statistics.median(times)

    return timing
