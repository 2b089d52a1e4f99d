"""Levels, threads and the building of the library."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from telechat.errors import DeviceError, UsageError
from telechat.ops.cpu import build, library
from telechat.ops.cpu.context import LEVELS, VARIABLE, Context, available_levels, choose_level
from telechat.ops.cpu.matmul import matmul, matmul_reference
from telechat.ops.cpu.weights import PackedWeight


def test_level_by_name_and_by_variable(any_context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert choose_level() == available_levels()[-1]
    monkeypatch.setenv(VARIABLE, "portable")
    assert choose_level() == "portable"
    assert Context(1).isa == "portable"
    assert choose_level(available_levels()[-1]) == available_levels()[-1]  # a name beats the variable
    monkeypatch.setenv(VARIABLE, "mmx")
    with pytest.raises(UsageError, match="'mmx'"):
        choose_level()


def test_a_level_that_the_processor_lacks(any_context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telechat.ops.cpu.context.available_levels", lambda: LEVELS[:1])
    with pytest.raises(DeviceError, match=r"amx was asked for; this processor has portable\."):
        choose_level("amx")


def test_threads_must_be_positive(any_context: Context) -> None:
    with pytest.raises(UsageError, match="num_threads is 0"):
        Context(0)


def test_idle_threads_do_not_spin(any_context: Context) -> None:
    context = Context(4)
    weight = PackedWeight.pack(context, torch.randn(256, 64), "int8")
    matmul(context, torch.randn(1, 64), weight)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.1
    context.close()


def test_many_calls_from_several_threads(any_context: Context) -> None:
    context = Context(3)
    weight = PackedWeight.pack(context, torch.randn(200, 96), "int4")
    wrong = []

    def work(seed: int) -> None:
        x = torch.randn(2, 96, generator=torch.Generator().manual_seed(seed))
        expected = matmul(context, x, weight)
        for _ in range(200):
            if not torch.equal(matmul(context, x, weight), expected):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_alone(any_context: Context) -> None:
    context = Context(2)
    weight, x = PackedWeight.pack(context, torch.randn(100, 64), "int8"), torch.randn(1, 64)
    expected = matmul_reference(x, weight)
    matmul(context, x, weight)
    child = os.fork()
    if child == 0:
        same = bool((matmul(context, x, weight) - expected).abs().max() < 1e-3)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# What is registered first is called last: the thread goes on for a while after everything else was.
ENDS_AT_WORK = """
import atexit, threading, time
atexit.register(time.sleep, 0.3)
import torch
from telechat.ops.cpu.context import Context
from telechat.ops.cpu.matmul import matmul
from telechat.ops.cpu.weights import PackedWeight
context = Context(2)
x, weight = torch.randn(64, 512), PackedWeight.pack(context, torch.randn(512, 512), "int8")

def work():
    while True:
        matmul(context, x, weight)

matmul(context, x, weight)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
"""


def test_a_program_ends_while_a_thread_computes(any_context: Context) -> None:
    """An engine's thread is not waited for; nothing that it uses is given back under its hands."""
    done = subprocess.run([sys.executable, "-c", ENDS_AT_WORK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_fingerprint_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.fingerprint()
    assert before == build.fingerprint()
    copied = tmp_path / "csrc"
    copied.mkdir()
    for path in build.SOURCE_FOLDER.iterdir():
        (copied / path.name).write_bytes(path.read_bytes() + b"\n")
    monkeypatch.setattr(build, "SOURCE_FOLDER", copied)
    assert build.fingerprint() != before


def test_every_source_is_compiled() -> None:
    compiled = {source for source, _, _ in build.compilations("x86_64-linux-gnu")}
    assert compiled == {path.stem for path in build.SOURCE_FOLDER.glob("*.c")}
    assert not any(flags for _, _, flags in build.compilations("aarch64-linux-gnu"))


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("no-such-compiler", "cannot be run"), (f"{sys.executable} -c 'raise SystemExit(3)'", "code 3")],
)
def test_without_a_working_compiler(
    compiler: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(build.BuildError, match=reason):
        build.build(tmp_path / "kernels.so")
    assert not list(tmp_path.glob("kernels.so"))


def test_no_compiler_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.BuildError, match="no C compiler was found"):
        build.find_compiler()


def test_the_package_ziglang_compiles_where_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: name == "ziglang" or None)
    assert build.find_compiler()[:4] == [sys.executable, "-m", "ziglang", "cc"]
    (tmp_path / "clang").touch(mode=0o755)
    assert build.find_compiler() == [str(tmp_path / "clang")]
    monkeypatch.setenv("CC", "my cc")
    assert build.find_compiler() == ["my", "cc"]


def test_a_missing_library_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise build.BuildError("no C compiler was found")

    monkeypatch.setattr(library, "find", fail)
    library._attempt.cache_clear()
    try:
        assert library.obstacle() == "no C compiler was found"
        with pytest.raises(DeviceError, match="no C compiler was found"):
            library.load()
    finally:
        library._attempt.cache_clear()


def test_cache_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELECHAT_CACHE", str(tmp_path))
    assert library.cache_folder() == tmp_path / "kernels"
