"""Loading needs the memory of the model and of one tensor, not of the model twice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tests.unit.checkpoint.folders import (
    TINY,
    assert_same_weights,
    random_model,
    tensors_of,
    write_bin,
    write_config,
    write_safetensors,
    write_shards,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from telechat import load_model

BIG = TINY.replace(hidden_size=64, ffn_hidden_size=256, num_layers=4, vocab_size=512)


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all tensors that operations make and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type != "meta":
            storage = out.untyped_storage()
            self.alive[storage] = storage.nbytes()
            self.peak = max(self.peak, sum(self.alive.values()))
        return out


@pytest.mark.parametrize("layout", ["safetensors", "safetensors shards"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_is_the_model_and_one_tensor(tmp_path: Path, layout: str, dtype: str) -> None:
    """Stored in fp32; loaded as it is, and in half of it.

    Mapped pickles would count as memory here though they are none; `test_resident_memory` has them.
    """
    model = random_model(BIG)
    tensors = tensors_of(model)
    write_config(tmp_path, BIG)
    if layout == "safetensors":
        write_safetensors(tmp_path, tensors)
    else:
        write_shards(tmp_path, tensors, layout.split()[0])
    with LiveBytes() as live:
        loaded = load_model(tmp_path, device="cpu", dtype=dtype)
    assert_same_weights(loaded, model)
    model_bytes = sum(value.numel() * value.element_size() for value in loaded.parameters())
    largest = max(value.numel() * value.element_size() for value in tensors.values())
    assert model_bytes <= live.peak <= model_bytes + largest


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak resident memory from /proc")
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_resident_memory(tmp_path: Path, kind: str) -> None:
    """Measured from outside, in a process of its own: anonymous memory grows by the model and little more."""
    import subprocess

    config = TINY.replace(hidden_size=512, ffn_hidden_size=1024, num_layers=4, vocab_size=1024)
    model = random_model(config)
    write_config(tmp_path, config)
    (write_safetensors if kind == "safetensors" else write_bin)(tmp_path, tensors_of(model))
    script = f"""
import threading, time
from telechat import load_model
load_model({str(tmp_path)!r}, device="cpu", dtype="bfloat16")  # once, so that libraries are loaded
def anonymous():
    text = open("/proc/self/smaps_rollup").read()
    return int(text.split("Anonymous:")[1].split()[0]) * 1024
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch); thread.start()
model = load_model({str(tmp_path)!r}, device="cpu", dtype="bfloat16")
done = True; thread.join()
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(peak - before, size)
"""
    source = Path(__file__).resolve().parents[3] / "src"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(source), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    growth, size = map(int, done.stdout.split())
    largest = 1024 * 512 * 4  # the embedding in fp32
    assert growth <= size + largest + 4e6, f"grew by {growth / 1e6:.1f} MB for a model of {size / 1e6:.1f} MB"
