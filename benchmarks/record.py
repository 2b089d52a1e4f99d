"""What a result is recorded with: machine, versions, commit, date and command; and the writing of it.

Files are `benchmarks/results/NAME-DATE.json`. Knows nothing of what was measured.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "i8mm")
PACKAGES = ("torch", "transformers")


def machine() -> dict[str, Any]:
    """Processor, instruction sets that matter here, cores this process may use, memory in GiB, system."""
    fields: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "family_model_stepping": [fields.get(key) for key in ("cpu family", "model", "stepping")],
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": usable,
        "memory_gib": _memory_gib(),
        "huge_pages": _first_line(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """Python, this package, and the packages that decide its speed."""
    from telechat import __version__

    found: dict[str, str | None] = {"python": platform.python_version(), "telechat": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """The checked out commit, `+` behind it when files differ from it; None outside a repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def record(module: str, words: Sequence[str], **content: Any) -> dict[str, Any]:
    """The head of a report, followed by `content`.

    Args:
        module: run as `python -m module`.
        words: its arguments.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", module, *words]),
        "commit": commit(),
        "machine": machine(),
        "load_at_start": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": versions(),
        **content,
    }


def write(name: str, report: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write `NAME-DATE.json`, at once or not at all; a later run of the same day replaces it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{str(report['date'])[:10]}.json"
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
    print(f"written: {path}", file=sys.stderr)
    return path


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _first_line(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.exists() else None
