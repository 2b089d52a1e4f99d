"""Names of devices and dtypes, on machines with and without an accelerator."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from telechat import device as device_module
from telechat.device import (
    accelerator,
    accelerator_kernels,
    cpu_kernels,
    device_count,
    device_name,
    dtype_name,
    empty_cache,
    memory_info,
    parse_dtype,
    resolve_device,
    supports_bfloat16,
    synchronize,
)
from telechat.errors import DeviceError, UsageError


@pytest.fixture
def without_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.fixture
def with_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two accelerators of a type that torch knows but this one need not have."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.mark.usefixtures("without_accelerator")
class TestWithout:
    def test_auto_is_the_cpu(self) -> None:
        assert accelerator() is None
        assert device_count() == 0
        assert resolve_device() == resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")

    @pytest.mark.parametrize("name", ["xpu", "xpu:1"])
    def test_accelerator_by_name(self, name: str) -> None:
        with pytest.raises(DeviceError, match="no accelerator that torch can use") as caught:
            resolve_device(name)
        assert "Choose auto or cpu" in str(caught.value)

    def test_unknown(self) -> None:
        with pytest.raises(DeviceError, match="Unknown device 'gpu9000'"):
            resolve_device("gpu9000")


@pytest.mark.usefixtures("with_two")
class TestWithTwo:
    def test_names(self) -> None:
        assert device_count() == 2
        assert resolve_device("auto") == resolve_device("xpu") == torch.device("xpu", 0)
        assert resolve_device("xpu:1") == torch.device("xpu", 1)
        assert resolve_device("cpu") == torch.device("cpu")

    def test_index_too_high(self) -> None:
        with pytest.raises(DeviceError, match="only 2 of type xpu are visible"):
            resolve_device("xpu:2")

    def test_another_type(self) -> None:
        with pytest.raises(DeviceError, match="an accelerator of type xpu"):
            resolve_device("mps")


def test_cpu_answers() -> None:
    cpu = torch.device("cpu")
    memory = memory_info(cpu)
    assert memory is None or 0 < memory.free_bytes <= memory.total_bytes
    assert device_name(cpu)
    synchronize(cpu)
    empty_cache(cpu)
    assert isinstance(supports_bfloat16(cpu), bool)


def test_memory_of_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the processes in it hold is not free, but for the files that they have read."""
    cpu = torch.device("cpu")
    if memory_info(cpu) is None:
        pytest.skip("this system does not say")
    (tmp_path / "memory.max").write_text("1000000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("900000\n", encoding="ascii")
    stat = "anon 600000\nactive_file 200000\ninactive_file 100000\n"
    (tmp_path / "memory.stat").write_text(stat, encoding="ascii")
    monkeypatch.setattr(device_module, "_CONTROL_GROUP", tmp_path)
    assert memory_info(cpu) == device_module.MemoryInfo(400_000, 1_000_000)
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    memory = memory_info(cpu)
    assert memory is not None and memory.total_bytes > 1_000_000


@pytest.mark.parametrize(
    ("known", "expected"),
    [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx2": True}, False)],
)
def test_native_bfloat16(monkeypatch: pytest.MonkeyPatch, known: dict[str, bool], expected: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert supports_bfloat16(torch.device("cpu")) is expected


def test_accelerator_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    backend = SimpleNamespace(
        mem_get_info=lambda device: (3, 9),
        get_device_name=lambda device: "Card",
        is_bf16_supported=lambda: True,
        empty_cache=lambda: calls.append("empty"),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: backend)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: calls.append("wait"))
    card = torch.device("xpu", 0)
    assert memory_info(card) == device_module.MemoryInfo(3, 9)
    assert device_name(card) == "Card"
    assert supports_bfloat16(card)
    synchronize(card)
    empty_cache(card)
    assert calls == ["wait", "empty"]


def test_accelerator_that_cannot_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    card = torch.device("xpu", 0)
    assert memory_info(card) is None
    assert device_name(card) == "xpu"
    assert not supports_bfloat16(card)


def test_dtypes() -> None:
    assert parse_dtype("bf16") == parse_dtype("bfloat16") == parse_dtype(torch.bfloat16) == torch.bfloat16
    assert parse_dtype("fp16") == torch.float16
    assert parse_dtype("float32") == torch.float32
    assert dtype_name(torch.float16) == "float16"
    with pytest.raises(UsageError, match="Unknown dtype 'int8'"):
        parse_dtype("int8")


def test_what_torch_was_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "version", SimpleNamespace(__version__="2", git_version="abc", cuda=None))
    assert accelerator_kernels() == "none"
    monkeypatch.setattr(torch, "version", SimpleNamespace(git_version="abc", cuda="12.8", hip=None))
    assert accelerator_kernels() == "cuda 12.8"
    assert cpu_kernels().startswith(torch.backends.cpu.get_cpu_capability())
