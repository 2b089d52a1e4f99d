"""Checkpoints are complete or not there, written beside the training, and the newest ones are kept."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from telechat.errors import CheckpointError
from telechat.train.checkpoints import CheckpointStore


def state(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"a.weight": torch.full((64, 64), value)}, "optimizer": {"a.step": torch.tensor(value)}}


@contextmanager
def limited_files(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond a size: what a full disk does to a write, without one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_state_comes_back_and_training_on_does_not_change_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=3)
    live = state(1.0)
    store.save(4, live, {"note": "four"})
    live["model"]["a.weight"].zero_()  # the next step, while the thread is still writing
    store.wait()
    fresh = state(-1.0)
    assert store.load(4, fresh) == {"note": "four"}
    assert torch.equal(fresh["model"]["a.weight"], torch.ones(64, 64))
    assert fresh["optimizer"]["a.step"] == 1.0
    store.close()


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (5, 10, 200):
        store.save(step, state(step), {})
    store.close()
    assert store.steps() == [10, 200]
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000010", "step-00000200"]


def test_a_half_written_one_is_removed_and_never_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save(5, state(5), {})
    store.close()
    half = store.folder / "step-00000006.partial"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"torn")
    again = CheckpointStore(tmp_path, keep_last=2)
    assert again.steps() == [5] and not half.exists()


def test_a_full_disk_leaves_the_one_before(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(5, state(5), {})
    store.wait()
    with limited_files(1000):
        store.save(6, state(6), {})
        with pytest.raises(
            CheckpointError, match=r"step 6: File too large; the last good one is .*step-00000005"
        ):
            store.wait()
    fresh = state(0)
    store.load(5, fresh)
    assert fresh["optimizer"]["a.step"] == 5.0
    assert [path.name for path in store.folder.iterdir()] == ["step-00000005"]


def test_a_failed_save_is_noticed_without_waiting_for_the_next(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    with limited_files(1000):
        store.save(6, state(6), {})
        assert store._pending is not None
        store._pending.exception()
    with pytest.raises(CheckpointError, match="there is none before it"):
        store.check()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(5, state(5), {})
    store.wait()
    with pytest.raises(CheckpointError, match=r"Cannot resume from .*step-00000005"):
        store.load(5, {"model": {"b.weight": torch.zeros(3)}})
    with pytest.raises(CheckpointError, match="Cannot resume from"):
        store.load(5, {"model": {"a.weight": torch.zeros(3, 3)}, "optimizer": {"a.step": torch.tensor(0.0)}})
