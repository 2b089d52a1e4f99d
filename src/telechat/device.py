"""Where tensors live: the only module that asks which accelerator this machine has.

`torch.accelerator` names it, so CUDA, Ascend, XPU and MPS need no words of their own here. The CPU has
neither device memory nor streams; memory and synchronisation therefore go through this module. Knows nothing
of models.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from telechat.errors import DeviceError, UsageError

CPU = torch.device("cpu")
_CONTROL_GROUP = Path("/sys/fs/cgroup")

# What the vendors' runtimes read to learn which accelerators a process may see: NVIDIA's, then Ascend's.
VISIBLE_DEVICES_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class MemoryInfo:
    """Memory of a device in bytes: what is free for new tensors, and all there is."""

    free_bytes: int
    total_bytes: int


def accelerator() -> torch.device | None:
    """The machine's accelerator without an index, or None when there is none that works."""
    if not torch.accelerator.is_available():
        return None
    return torch.accelerator.current_accelerator()


def device_count() -> int:
    """How many accelerators are visible; 0 on a machine without."""
    return torch.accelerator.device_count() if accelerator() is not None else 0


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device a name stands for: `auto` is the accelerator where there is one, else the CPU.

    Args:
        name: `auto`, `cpu`, a device type such as torch knows it, or a type and an index, `type:1`.

    Raises:
        DeviceError: the name is unknown, or this machine has no such device.
    """
    present = accelerator()
    if name == "auto":
        return torch.device(present.type, 0) if present is not None else CPU
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"Unknown device {str(name)!r}.", hint=f"Choose {_choices(present)}.") from error
    if device.type in (CPU.type, "meta"):
        return device
    if present is None or device.type != present.type:
        raise DeviceError(
            f"Device {str(name)!r} was asked for, but this machine has {_inventory(present)}.",
            hint=f"Choose {_choices(present)}.",
        )
    count = torch.accelerator.device_count()
    if (device.index or 0) >= count:
        raise DeviceError(
            f"Device {str(name)!r} was asked for, but only {count} of type {device.type} are visible.",
            hint=f"Choose {present.type}:0 to {present.type}:{count - 1}.",
        )
    return torch.device(device.type, device.index or 0)


def _inventory(present: torch.device | None) -> str:
    return (
        "no accelerator that torch can use" if present is None else f"an accelerator of type {present.type}"
    )


def _choices(present: torch.device | None) -> str:
    return "auto or cpu" if present is None else f"auto, cpu or {present.type}"


def device_name(device: torch.device) -> str:
    """A name for people: the accelerator's product name, or the processor's."""
    if device.type == CPU.type:
        return str(torch.cpu.get_capabilities().get("cpu_name", "CPU")) if _has_capabilities() else "CPU"
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device.type


def memory_info(device: torch.device) -> MemoryInfo | None:
    """Free and total memory of a device (of the machine, for the CPU); None where it cannot be asked."""
    if device.type == CPU.type:
        return _host_memory()
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return None
    free, total = module.mem_get_info(device)
    return MemoryInfo(int(free), int(total))


def _host_memory() -> MemoryInfo | None:
    """Memory of this machine, within the limit of its container where there is one."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
        free = page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows and macOS lack some of these
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass  # SC_AVPHYS_PAGES counts no reclaimable cache, but it is an answer
    container = _container_memory()
    if container is None:
        return MemoryInfo(free, total)
    return MemoryInfo(min(free, container.free_bytes), min(total, container.total_bytes))


def _container_memory() -> MemoryInfo | None:
    """Memory of the control group that this process is in, or None when it has no limit."""
    try:
        limit, used, lines = (
            (_CONTROL_GROUP / name).read_text(encoding="ascii").strip()
            for name in ("memory.max", "memory.current", "memory.stat")
        )
    except OSError:
        return None
    if not limit.isdigit():
        return None
    counts = dict(line.split(" ", 1) for line in lines.splitlines())
    # Pages of files that were read count as used, and make way when memory is needed.
    files = sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))
    return MemoryInfo(max(int(limit) - int(used) + files, 0), int(limit))


def memory_in_use(device: torch.device, *, pid: int | None = None) -> int | None:
    """Bytes that this process holds of a device's memory: its resident memory, for the CPU.

    None where it cannot be asked.

    Args:
        pid: another process of this machine; for the CPU only.
    """
    if device.type != CPU.type:
        module = torch.get_device_module(device)
        return int(module.memory_reserved(device)) if hasattr(module, "memory_reserved") else None
    try:
        with open(f"/proc/{pid or 'self'}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that this process has held of a device's memory so far; None where it cannot be asked.

    Tensors on an accelerator; the resident memory, for the CPU.
    """
    if device.type != CPU.type:
        module = torch.get_device_module(device)
        return int(module.max_memory_allocated(device)) if hasattr(module, "max_memory_allocated") else None
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes, except on macOS


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work; the CPU always has."""
    if device.type not in (CPU.type, "meta"):
        torch.accelerator.synchronize(device)


def empty_cache(device: torch.device) -> None:
    """Give unused cached memory back to the device; nothing to do on the CPU."""
    if device.type not in (CPU.type, "meta"):
        module = torch.get_device_module(device)
        if hasattr(module, "empty_cache"):
            module.empty_cache()


class HostCopy:
    """A tensor's values on their way to the host; work queued behind them does not delay them.

    Attributes:
        source: the tensor itself.
    """

    def __init__(self, source: torch.Tensor) -> None:
        self.source = source
        self._values, self._arrival = source, None
        if not source.is_cpu:
            self._values = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self._values.copy_(source, non_blocking=True)
            self._arrival = torch.Event(source.device)
            # Without a stream, torch takes that of the present device, which may be another one.
            self._arrival.record(torch.accelerator.current_stream(source.device))

    def values(self) -> torch.Tensor:
        """The values on the host; waits for them the first time."""
        if self._arrival is not None:
            self._arrival.synchronize()
            self._arrival = None
        return self._values


class Staging:
    """Integers that the host writes and sends to a device without waiting.

    Attributes:
        host: int32 [count], to be written after `wait`.
        device: int32 [count], as it was last sent.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        is_on_cpu = device.type == CPU.type
        self.host = torch.zeros(count, dtype=torch.int32, pin_memory=not is_on_cpu)
        self.device = torch.zeros(count, dtype=torch.int32, device=device)
        self._sent = None if is_on_cpu else torch.Event(device)

    def wait(self) -> None:
        """Until what was sent last has been read from the host's side."""
        if self._sent is not None:
            self._sent.synchronize()

    def send(self, count: int) -> None:
        """Send the first `count` integers."""
        self.device[:count].copy_(self.host[:count], non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.accelerator.current_stream(self.device.device))


def supports_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices natively (on the CPU: AMX, AVX512-BF16 or ARM's BF16)."""
    if device.type == CPU.type:
        return _cpu_has_bfloat16()
    module = torch.get_device_module(device)
    return bool(module.is_bf16_supported()) if hasattr(module, "is_bf16_supported") else False


def _has_capabilities() -> bool:
    return hasattr(torch.cpu, "get_capabilities")


def _cpu_has_bfloat16() -> bool:
    if _has_capabilities():
        known = torch.cpu.get_capabilities()
        return any(bool(known.get(name)) for name in ("amx_bf16", "avx512_bf16", "bf16", "arm_bf16"))
    # torch before 2.12 answers through private names only.
    probes = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
    return any(probe() for probe in probes if probe is not None)


def cpu_kernels() -> str:
    """The vector instructions and libraries that torch computes with on the CPU: "AVX2, oneDNN, OpenMP"."""
    libraries = (("oneDNN", "mkldnn"), ("MKL", "mkl"), ("OpenMP", "openmp"))
    present = [name for name, module in libraries if getattr(torch.backends, module).is_available()]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *present])


def accelerator_kernels() -> str:
    """What torch's accelerator kernels were built for: "cuda 12.8"; "none" in a build for the CPU."""
    # Besides the version of its source, torch.version holds one text for each platform it was built for.
    versions = {name: value for name, value in vars(torch.version).items() if name != "git_version"}
    built = [
        f"{name} {value}"
        for name, value in versions.items()
        if isinstance(value, str) and not name.startswith("_")
    ]
    return ", ".join(built) or "none"


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """The dtype of a name: float32, bfloat16, float16, or fp32, bf16, fp16.

    Raises:
        UsageError: any other name.
    """
    if isinstance(name, torch.dtype):
        return name
    known = DTYPES.get(_SHORT_DTYPES.get(name, name))
    if known is None:
        raise UsageError(f"Unknown dtype {name!r}.", hint=f"Choose auto, {', '.join(DTYPES)}.")
    return known


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32 and so on, as config.json spells it."""
    return str(dtype).removeprefix("torch.")
