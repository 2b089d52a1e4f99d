"""Worker: what an accelerator's memory gives, and attention by itself: ours, torch's, and flash-attn's.

    python -m benchmarks.workers.gpu_kernels --form ours

Ours reads keys and values in scattered blocks, as in the engine; the others read them in one piece.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.workers.loop import Case, Result, serve
from telechat.device import CPU, device_name, resolve_device, synchronize
from telechat.ops.paged import PagedCache, Sequences
from telechat.ops.paged_choice import choose_paged_kernels

HEADS, HEAD_DIM, BLOCK_SIZE = 32, 128, 64
FORMS = ("ours", "torch", "flash_attn", "flash_attn_interface")


class Kernels:
    """One form of attention, in bf16.

    Args:
        num_bytes: read at once where bandwidth is measured.
        repeats: runs that are timed together.
    """

    def __init__(self, form: str, device: torch.device, *, num_bytes: int, repeats: int) -> None:
        self.device, self.repeats, self.num_bytes = device, repeats, num_bytes
        self.package: Any = None if form in ("ours", "torch") else importlib.import_module(form)
        self.form = form

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds of one run, after two that do not count."""
        for _ in range(2):
            run()
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(self.repeats):
            run()
        synchronize(self.device)
        return (time.perf_counter() - start) / self.repeats

    def read(self) -> Result:
        """The faster of reading (a sum) and of copying, whose bytes count twice."""
        source = torch.ones(self.num_bytes // 4, device=self.device)
        target = torch.empty_like(source)
        copied = self.timed(lambda: target.copy_(source)) / 2
        summed = self.timed(source.sum)
        return {
            "gigabytes": self.num_bytes / 1e9,
            "seconds": min(copied, summed),
            "copy_gb_per_second": self.num_bytes / copied / 1e9,
            "read_gb_per_second": self.num_bytes / summed / 1e9,
        }

    def attention(self, *, batch: int, new: int, length: int) -> Result:
        """Attention of the last `new` tokens of `batch` sequences of `length` tokens."""
        run = (self._ours if self.form == "ours" else self._other)(batch, new, length)
        return {"tokens": float(batch * new), "seconds": self.timed(run)}

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).bfloat16()

    def _ours(self, batch: int, new: int, length: int) -> Callable[[], Tensor]:
        per_sequence = -(-length // BLOCK_SIZE)
        shape = (batch * per_sequence, HEADS, BLOCK_SIZE, HEAD_DIM)
        cache = PagedCache(self._random(*shape), self._random(*shape))
        tables = torch.randperm(batch * per_sequence).view(batch, per_sequence).tolist()
        sequences = Sequences.of([new] * batch, [length] * batch, tables).to(self.device)
        kernels = choose_paged_kernels(
            self.device,
            dtype=torch.bfloat16,
            cache_dtype=torch.bfloat16,
            head_dim=HEAD_DIM,
            block_size=BLOCK_SIZE,
        )
        q = self._random(batch * new, HEADS, HEAD_DIM)
        return lambda: kernels.attention(q, cache, sequences)

    def _other(self, batch: int, new: int, length: int) -> Callable[[], Tensor]:
        assert new in (1, length), "a chunk in the middle needs a mask that torch's fast forms do not take"
        q, (keys, values) = (
            self._random(batch, new, HEADS, HEAD_DIM),
            (self._random(batch, length, HEADS, HEAD_DIM) for _ in range(2)),
        )
        if self.form == "torch":
            parts = [x.transpose(1, 2).contiguous() for x in (q, keys, values)]
            return lambda: F.scaled_dot_product_attention(*parts, is_causal=new > 1)
        if new > 1:
            return lambda: self.package.flash_attn_func(q, keys, values, causal=True)
        lengths = torch.full((batch,), length, dtype=torch.int32, device=self.device)
        return lambda: self.package.flash_attn_with_kvcache(q, keys, values, cache_seqlens=lengths)


def open_worker(words: list[str]) -> tuple[dict[str, Case], dict[str, object]]:
    """Bind the form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", choices=FORMS, default="ours")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(words)
    device = resolve_device(args.device)
    about: dict[str, object] = {"device": device_name(device)}
    if args.form.startswith("flash"):
        try:
            importlib.import_module(args.form)
        except ImportError as error:
            return {}, {**about, "unfit": f"{args.form} does not import ({error})"}
    # On a CPU only so that a test can run it.
    is_small = device == CPU
    kernels = Kernels(
        args.form, device, num_bytes=2**20 if is_small else 2**32, repeats=2 if is_small else 20
    )
    return {"read": kernels.read, "attention": kernels.attention}, about


if __name__ == "__main__":
    sys.exit(serve(lambda: open_worker(sys.argv[1:])))
