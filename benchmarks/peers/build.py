"""Builds the peers' environment: llama-cpp-python from its source package, with AMX that works, and gguf.

    python -m benchmarks.peers.build

The environment is `bench-peers` in `.oracles` (elsewhere: TELECHAT_BENCH_PEERS). Its packages never enter the
project's own. Knows nothing of measuring.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks import record

FOLDER = Path(__file__).resolve().parent
REQUIREMENTS = FOLDER / "requirements.txt"
# Five lines without which a build by GCC 12 crashes on machines with AMX; empty for other machines.
HEADER = FOLDER / "tile_loadconfig.h"
# What llama.cpp says of itself where its AMX code is in use.
AMX = "AMX_INT8 = 1"


def environment_folder() -> Path:
    """Where the peers' environment is, or will be."""
    named = os.environ.get("TELECHAT_BENCH_PEERS")
    return Path(named).expanduser().resolve() if named else FOLDER.parents[1] / ".oracles" / "bench-peers"


def peer_python() -> Path:
    """The peers' interpreter; exists once they are built."""
    return environment_folder() / "bin" / "python"


def wanted() -> str:
    """What the environment was made from, as a fingerprint: another one means it is to be built again."""
    return hashlib.sha256(REQUIREMENTS.read_bytes() + HEADER.read_bytes() + sys.version.encode()).hexdigest()


def is_built() -> bool:
    """Whether the environment is there and made from these files."""
    stamp = environment_folder() / "peers.sha256"
    return stamp.exists() and stamp.read_text(encoding="utf-8") == wanted()


def cmake_arguments() -> str:
    """What scikit-build hands to CMake: this machine's instructions, and our header before each file."""
    flags = f"-include {shlex.quote(str(HEADER))}"
    # The picture models are not measured; without them it builds in less time.
    return " ".join(["-DGGML_NATIVE=ON", "-DLLAVA_BUILD=OFF", shlex.quote(f"-DCMAKE_CXX_FLAGS={flags}")])


def build() -> None:
    """Make the environment anew.

    Raises:
        subprocess.CalledProcessError: a step failed; it has said why.
    """
    folder = environment_folder()
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(peer_python()), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-binary", "llama-cpp-python", "--no-cache-dir", "-r", str(REQUIREMENTS)],
        check=True,
        env={**os.environ, "CMAKE_ARGS": cmake_arguments()},
    )


def system_info() -> str:
    """What llama.cpp found on this machine; its own words.

    Raises:
        subprocess.CalledProcessError: it does not run.
    """
    says = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
    done = subprocess.run([str(peer_python()), "-c", says], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def main() -> int:
    """Build what is missing; says what llama.cpp found on this machine."""
    try:
        if not is_built():
            folder = environment_folder()
            print(f"building the peers into {folder} (about six minutes on two cores)", file=sys.stderr)
            build()
            info = system_info()
            (folder / "peers.sha256").write_text(wanted(), encoding="utf-8")
        else:
            info = system_info()
    except subprocess.CalledProcessError as error:
        print(
            f"the peers are not built: {shlex.join(error.cmd[:4])} ... ended with {error.returncode}. "
            "They need a C and a C++ compiler and the package index.",
            file=sys.stderr,
        )
        return 1
    print(info)
    if "amx_int8" in record.machine()["flags"] and AMX not in info:
        print(f"this machine has AMX, but llama.cpp does not say {AMX}: it will be left out", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
