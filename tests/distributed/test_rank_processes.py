"""Ranks in processes of their own: they compute, they are watched, and none stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tests.distributed.models import BLOCK_SIZE, BUILD, NUM_BLOCKS, prompt_batch, run_case, whole_model

from telechat.errors import ConfigError, RankError
from telechat.models.paged import PagedBatch, TorchExecutor
from telechat.parallel.executor import RankSettings, TensorParallelExecutor
from telechat.parallel.groups import TIMEOUT
from telechat.parallel.sharding import Layout

SHAPE = {"heads": 4, "kv_heads": 2}
ROOT = Path(__file__).resolve().parents[2]


def start(*, tp: int = 2, build: str = BUILD, port: int = 0) -> TensorParallelExecutor:
    settings = RankSettings(layout=Layout(tp=tp), build=build, settings=SHAPE, port=port)
    return TensorParallelExecutor(settings)


def is_alive(pid: int) -> bool:
    """Whether there is such a process; one that nobody has waited for counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_equal_one_and_end() -> None:
    num_threads = torch.get_num_threads()
    executor = start()
    pids = executor.pids
    try:
        assert executor.describe().startswith("2 ranks, each: torch modules")
        assert executor.memory_of_others() > 1 << 26  # torch alone takes more
        whole = TorchExecutor(whole_model(SHAPE))
        assert executor.cache_bytes_per_block(16) == whole.cache_bytes_per_block(16)
        for ours, expected in zip(run_case(executor), run_case(whole), strict=True):
            assert (ours - expected).abs().max() <= 1e-5
    finally:
        executor.close()
    assert not any(is_alive(pid) for pid in pids)
    assert torch.get_num_threads() == num_threads
    with pytest.raises(RankError, match="closed"):
        executor.forward(prompt_batch([1, 2], [0]))


@pytest.mark.parametrize("is_idle", [True, False])
def test_a_rank_that_is_killed_is_an_error_within_seconds(is_idle: bool) -> None:
    executor = start()
    [pid] = executor.pids
    try:
        executor.allocate(NUM_BLOCKS, BLOCK_SIZE)
        executor.forward(prompt_batch([1, 2, 3], [0]))
        if is_idle:
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        else:  # stopped, it takes the order and never comes to the sum; then it dies in the middle of it
            os.kill(pid, signal.SIGSTOP)
            threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
        started = time.monotonic()
        with pytest.raises(RankError, match=r"Rank 1 of 2 was ended by signal 9 \(SIGKILL\)"):
            executor.forward(prompt_batch([1, 2, 3, 4], [0], cached=3))
        assert time.monotonic() - started < TIMEOUT.total_seconds(), "seen only when the transport gave up"
        with pytest.raises(RankError, match="Rank 1 of 2 was ended by signal 9"):
            executor.forward(prompt_batch([1, 2, 3, 4], [0], cached=3))
        assert not is_alive(pid)
    finally:
        executor.close()


def test_an_interrupt_waits_for_the_end_of_the_step() -> None:
    """Ctrl-C in a conversation ends an answer, not the engine: the ranks stay in step."""
    executor = start()
    try:
        executor.allocate(NUM_BLOCKS, BLOCK_SIZE)
        expected = executor.forward(prompt_batch([1, 2, 3], [0]))
        forward = executor._local.forward

        def interrupted(batch: PagedBatch) -> torch.Tensor:
            signal.raise_signal(signal.SIGINT)
            return forward(batch)

        executor._local.forward = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            executor.forward(prompt_batch([1, 2, 3], [0]))
        executor._local.forward = forward  # type: ignore[method-assign]
        assert torch.equal(executor.forward(prompt_batch([1, 2, 3], [0])), expected)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        executor.close()


def test_a_step_that_fails_here_ends_the_ranks() -> None:
    executor = start()
    [pid] = executor.pids
    executor.allocate(NUM_BLOCKS, BLOCK_SIZE)

    def failing(batch: PagedBatch) -> torch.Tensor:
        raise MemoryError("no room")

    executor._local.forward = failing  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        executor.forward(prompt_batch([1, 2], [0]))
    assert not is_alive(pid)
    with pytest.raises(RankError, match="MemoryError: no room"):
        executor.forward(prompt_batch([1, 2], [0]))


def test_a_rank_that_cannot_load_says_why() -> None:
    with pytest.raises(RankError, match="Rank 1 of 2 failed: the disk of rank 1 is gone"):
        start(build="tests.distributed.models:build_only_rank_0")


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 attention heads cannot be shared by 3 ranks"):
        start(tp=3)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RankError, match=f"cannot meet on port {port}"):
            start(port=port)


def test_ranks_on_accelerators_use_torchs_default_group() -> None:
    """With gloo in the place of the vendor's library; see `accelerator_rank`."""
    command = [sys.executable, "-m", "tests.distributed.accelerator_rank"]
    first = subprocess.Popen([*command, "0", "0"], stdout=subprocess.PIPE, text=True, env=environment())
    assert first.stdout is not None
    port = first.stdout.readline().strip()
    second = subprocess.run([*command, "1", port], text=True, capture_output=True, env=environment())
    rest, _ = first.communicate()
    assert (first.returncode, rest) == (0, "done\n")
    assert (second.returncode, second.stdout) == (0, "done\n"), second.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}


def test_ranks_end_with_rank_0_however_it_ends() -> None:
    code = (
        "from tests.distributed.test_rank_processes import start\n"
        "import os, time\n"
        "executor = start()\n"
        "print(*executor.pids, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        [pid] = map(int, process.stdout.readline().split())
        assert is_alive(pid)
        process.kill()
        process.wait()
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(pid)
