"""Compiles the C sources of this folder into one shared library.

Needs nothing but the standard library, so that the package's build can run it before anything is installed.
Knows nothing of where libraries are kept or loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE_FOLDER = Path(__file__).parent / "csrc"

# -fno-… : nothing reads errno or floating point traps, and both stand in the way of vector code.
FLAGS = (
    *("-O3", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra", "-Wno-psabi"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
AVX512_WIDE = (*AVX512, "-mprefer-vector-width=512")
AMX = (*AVX512_WIDE, "-mavx512vbmi", "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16")

Compilation = tuple[str, str, tuple[str, ...]]

PLAIN_FILES = (
    "adapters",
    "compact",
    "context",
    "decoder",
    "matmul",
    "mixture",
    "pack",
    "pool",
    "rows",
    "sample",
)
LEVEL_FILES = (
    *("level_attention", "level_matmul_float", "level_matmul_int", "level_matmul_w8a8"),
    *("level_rows", "level_sample"),
)
AMX_FILES = ("attention_amx", "matmul_amx_tiles", "matmul_amx_int")


class BuildError(Exception):
    """The library cannot be built here; the message says why."""


def find_compiler() -> list[str]:
    """The C compiler as words of a command: `CC`, else cc, gcc or clang, else that of the package ziglang.

    Raises:
        BuildError: there is none.
    """
    if os.name != "posix":
        raise BuildError("the CPU kernels are built on Linux and macOS only")
    found = system_compiler() or ziglang_compiler()
    if found is None:
        raise BuildError("no C compiler was found (looked for CC, cc, gcc, clang and the package ziglang)")
    return found


def system_compiler() -> list[str] | None:
    """The C compiler that this machine has by itself, as words of a command: `CC`, else cc, gcc or clang."""
    named = os.environ.get("CC")
    if named:
        return shlex.split(named)
    paths = (shutil.which(name) for name in ("cc", "gcc", "clang"))
    return next(([path] for path in paths if path), None)


def ziglang_compiler() -> list[str] | None:
    """The compiler of the package ziglang: clang as a wheel, with all that it needs."""
    if importlib.util.find_spec("ziglang") is None:
        return None
    # It compiles for the processor at hand unless told otherwise, and always adds what debuggers read.
    return [sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline", "-g0"]


def compilations(machine: str) -> list[Compilation]:
    """(source, object name, flags) of every compilation for a target such as `x86_64-linux-gnu`."""
    units: list[Compilation] = [(name, name, ()) for name in (*PLAIN_FILES, *LEVEL_FILES)]
    if machine.startswith("x86_64"):
        units += [(name, f"{name}-avx2", AVX2) for name in LEVEL_FILES]
        units += [(name, f"{name}-avx512", AVX512_WIDE) for name in LEVEL_FILES]
        units += [(name, name, AMX) for name in AMX_FILES]
    return units


def fingerprint() -> str:
    """Twelve hexadecimal digits that change with the sources and the flags."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(SOURCE_FOLDER.iterdir()):
        if path.suffix in (".c", ".h"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def library_name() -> str:
    """File name of the library that these sources make."""
    return f"kernels-{fingerprint()}.so"


def build(target: Path, *, more_flags: tuple[str, ...] = ()) -> None:
    """Compile and link into `target`, replacing it at once when all is done.

    Args:
        more_flags: these too, after our own: sanitizers, for instance.

    Raises:
        BuildError: no compiler, or it failed; the message holds the end of what it said.
    """
    compiler = find_compiler()
    machine = _run([*compiler, "-dumpmachine"]).strip()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        # What ziglang keeps between compilations is larger than the library, and needed once.
        environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}

        def compile_one(unit: Compilation) -> Path:
            source, name, flags = unit
            out = Path(folder, f"{name}.o")
            path = SOURCE_FOLDER / f"{source}.c"
            _run([*compiler, *FLAGS, *more_flags, *flags, "-c", str(path), "-o", str(out)], environment)
            return out

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, compilations(machine)))
        made = Path(folder, target.name)
        linked = [*compiler, *more_flags, "-shared", "-pthread", "-o", str(made), *map(str, objects), "-lm"]
        _run(linked, environment)
        made.replace(target)


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise BuildError(f"{shlex.join(command[:1])} failed with code {done.returncode}: {said}")
    return done.stdout
