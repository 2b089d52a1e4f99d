"""Tensors are read in parts by several threads, into memory that goes back to the system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from telechat.checkpoint import weights as reading
from telechat.checkpoint.weights import open_weights
from telechat.errors import CheckpointError
from telechat.ops.pages import empty_pages

TENSORS = {
    "a": torch.randn(37, 53),
    "b": torch.randn(1000).bfloat16(),
    "c": torch.randint(-128, 127, (11, 13), dtype=torch.int8),
    "d": torch.tensor([True, False, True]),
    "e": torch.tensor(3.5),
    "f": torch.empty(0, 4),
}


@pytest.mark.parametrize("share", [1, 100, 2003, 1 << 22])
def test_parts_make_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: int) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    monkeypatch.setattr(reading, "_LEAST_SHARE_BYTES", share)
    read = dict(open_weights(tmp_path).stream(TENSORS))
    assert set(read) == set(TENSORS)
    for name, expected in TENSORS.items():
        assert read[name].dtype == expected.dtype and torch.equal(read[name], expected), name


def test_what_is_read_is_not_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    read = dict(open_weights(tmp_path).stream(TENSORS))
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(read["a"], TENSORS["a"])


@pytest.mark.parametrize("share", [100, 1 << 22])
def test_a_file_that_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    stored = open_weights(tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    monkeypatch.setattr(reading, "_LEAST_SHARE_BYTES", share)
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read: it ends \d+ bytes early"):
        dict(stored.stream(TENSORS))


@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
def test_freed_pages_go_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

    before = resident()
    tensors = [empty_pages((1 << 20,), torch.int32).zero_() for _ in range(32)]  # 4 MiB each
    assert resident() - before > 120 << 20
    del tensors[::2]
    assert resident() - before < 72 << 20
    assert empty_pages((2, 3), torch.bfloat16).shape == (2, 3)
