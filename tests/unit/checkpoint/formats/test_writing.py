"""Files appear complete or not at all, and an interrupted run is continued rather than begun again."""

from __future__ import annotations

import errno
import zlib
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import Tensor

from telechat.checkpoint.formats import file_copying, streaming, writing
from telechat.checkpoint.formats.lazy import HeldTensor, Run, Window
from telechat.checkpoint.formats.streaming import Piece
from telechat.checkpoint.formats.writing import FilePlan, TargetPlan, plain_file, write_target
from telechat.errors import CheckpointError


class Counted(HeldTensor):
    """Counts how often it is read, and breaks when told to."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.num_reads = 0
        self.error: Exception | None = None

    def read_into(self, out: Tensor, window: Window) -> None:
        self.num_reads += 1
        if self.error is not None:
            raise self.error
        super().read_into(out, window)


def tensors() -> list[Counted]:
    return [Counted(torch.full((6, 4), float(number))) for number in range(5)]


def plan_of(parts: list[Counted]) -> TargetPlan:
    pieces = [Piece("", None, ((0, b"head"),))]
    pieces += [Piece(f"t{n}", part, ((0, b"<"), (32, b"|"))) for n, part in enumerate(parts)]
    return TargetPlan((FilePlan("sub/weights", tuple(pieces)),), {"note.json": b"{}"})


def expected_bytes(parts: list[Counted]) -> bytes:
    content = b"head"
    for part in parts:
        raw = part.read().numpy().tobytes()
        content += b"<" + raw[:32] + b"|" + raw[32:]
    return content


@pytest.mark.parametrize("window", [16, 40, 1 << 20])
def test_content_and_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(streaming, "WINDOW_BYTES", window)
    parts, seen = tensors(), []
    plan = plan_of(parts)
    write_target(tmp_path / "out", plan, lambda done, total: seen.append((done, total)))
    assert (tmp_path / "out/sub/weights").read_bytes() == expected_bytes(parts)
    assert (tmp_path / "out/note.json").read_bytes() == b"{}"
    assert seen[-1] == (plan.files[0].num_bytes,) * 2
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_continues_after_an_interruption(tmp_path: Path) -> None:
    parts = tensors()
    parts[3].error = CheckpointError("the source is gone")
    with pytest.raises(CheckpointError, match="gone"):
        write_target(tmp_path / "out", plan_of(parts))
    assert not (tmp_path / "out").exists()
    parts[3].error = None
    for part in parts:
        part.num_reads = 0
    write_target(tmp_path / "out", plan_of(parts))
    # The last whole piece is written again; those before it are kept.
    assert [part.num_reads for part in parts[:2]] == [0, 0]
    assert all(part.num_reads for part in parts[2:])
    assert (tmp_path / "out/sub/weights").read_bytes() == expected_bytes(parts)


class Copied(Counted):
    """Its bytes also lie in a file, in two runs; it must not be read."""

    def __init__(self, path: Path, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.error = AssertionError("read")
        raw = tensor.numpy().tobytes()
        path.write_bytes(b"xx" + raw[:40] + b"y" + raw[40:])
        self.places = [Run(path, 2, 40), Run(path, 43, len(raw) - 40)]

    def runs(self) -> list[Run]:
        return self.places


def refuse(*args: object) -> int:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


@pytest.mark.parametrize("by", ["the system", "memory", "memory where the system refuses"])
def test_bytes_that_lie_in_files_are_copied(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "memory":
        monkeypatch.delattr(file_copying.os, "copy_file_range", raising=False)
    elif by != "the system":
        monkeypatch.setattr(file_copying.os, "copy_file_range", refuse, raising=False)
    parts = [Copied(tmp_path / f"{number}", torch.randn(6, 4)) for number in range(3)]
    write_target(tmp_path / "out", plan_of([*parts, Counted(torch.ones(6, 4))]))
    content = (tmp_path / "out/sub/weights").read_bytes()
    for part in parts:
        part.error = None
    assert content == expected_bytes([*parts, Counted(torch.ones(6, 4))])


@pytest.mark.parametrize("system", [True, False])
def test_a_copied_file_that_ends_early(system: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not system:
        monkeypatch.delattr(file_copying.os, "copy_file_range", raising=False)
    part = Copied(tmp_path / "source", torch.randn(6, 4))
    (tmp_path / "source").write_bytes((tmp_path / "source").read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="source ends 5 bytes early"):
        write_target(tmp_path / "out", plan_of([part]))


def test_another_plan_begins_anew(tmp_path: Path) -> None:
    parts = tensors()
    parts[4].error = CheckpointError("gone")
    with pytest.raises(CheckpointError):
        write_target(tmp_path / "out", plan_of(parts))
    other = tensors()[::-1][:3]
    write_target(tmp_path / "out", plan_of(other))
    assert (tmp_path / "out/sub/weights").read_bytes() == expected_bytes(other)


def test_checksum_of_a_continued_file(tmp_path: Path) -> None:
    parts = tensors()
    body = plan_of(parts).files[0].pieces
    plan = TargetPlan((FilePlan("weights", body, lambda crc: crc.to_bytes(4, "big"), 4),))
    parts[4].error = CheckpointError("gone")
    with pytest.raises(CheckpointError):
        write_target(tmp_path / "out", plan)
    parts[4].error = None
    write_target(tmp_path / "out", plan)
    content = (tmp_path / "out/weights").read_bytes()
    assert content[-4:] == zlib.crc32(content[:-4]).to_bytes(4, "big")


def test_a_single_file(tmp_path: Path) -> None:
    plan = TargetPlan((plain_file("out.bin", b"content"),), is_file=True)
    write_target(tmp_path / "out.bin", plan)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.bin", b"content")]


def test_a_target_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    for target in (tmp_path / "out", tmp_path / "out/mine"):
        with pytest.raises(CheckpointError, match="exists already"):
            write_target(target, plan_of(tensors()))
    assert (tmp_path / "out/mine").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_target(tmp_path / "out", plan_of(tensors()))
    assert (tmp_path / "out/sub/weights").is_file()


def test_a_foreign_partial_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/mine").write_text("mine")
    with pytest.raises(CheckpointError, match=r"out\.partial is in the way"):
        write_target(tmp_path / "out", plan_of(tensors()))
    assert (tmp_path / "out.partial/mine").read_text() == "mine"


def test_too_little_space_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: usage(100, 90, 10))
    parts = tensors()
    with pytest.raises(CheckpointError, match=r"needed; the disk of .* free"):
        write_target(tmp_path / "out", plan_of(parts))
    assert not any(part.num_reads for part in parts)


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = writing._write_all
    count = iter(range(100))

    def full(file: object, memory: memoryview) -> None:
        if next(count) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(file, memory)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "_write_all", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*continues from out\.partial"):
        write_target(tmp_path / "out", plan_of(tensors()))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(writing, "_write_all", written)
    parts = tensors()
    write_target(tmp_path / "out", plan_of(parts))
    assert (tmp_path / "out/sub/weights").read_bytes() == expected_bytes(parts)
