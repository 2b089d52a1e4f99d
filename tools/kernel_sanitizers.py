"""Run the kernels' check with the compiler's sanitizers: memory, undefined behaviour, races between threads.

Every level of this processor runs; the first report ends the program with what the sanitizer saw. Weights,
inputs and outputs are watched to the byte; scratch memory, which operations share, as a whole.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from telechat.ops.cpu import build
from telechat.ops.cpu.context import LEVELS, available_levels

ROOT = Path(__file__).resolve().parents[1]
CHECK = ROOT / "tests" / "unit" / "ops" / "cpu" / "kernel_check.c"
SANITIZERS = ("address,undefined", "thread")


def sanitized(name: str, folder: Path) -> Path:
    """The check and the kernels, compiled with that sanitizer; optimised little, which compiles fast."""
    flags = ("-O1", "-g1", f"-fsanitize={name}", "-fno-sanitize-recover=all")
    library = folder / build.library_name()
    build.build(library, more_flags=flags)
    program = folder / "check"
    sources = (f"-I{build.SOURCE_FOLDER}", str(CHECK), str(library))
    command = [*build.find_compiler(), *build.FLAGS, *flags, *sources]
    subprocess.run([*command, f"-Wl,-rpath,{folder}", "-o", str(program), "-lm"], check=True)
    return program


def main() -> int:
    """Returns 0 when no sanitizer has anything to say."""
    # Older thread sanitizers do not start where the system scatters addresses widely.
    fixed_addresses = ["setarch", "-R"] if shutil.which("setarch") else []
    # What weights hold lives as long as the program, and is left to the system.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    code = 0
    for sanitizer in SANITIZERS:
        with tempfile.TemporaryDirectory(prefix="telechat-sanitizer-") as folder:
            program = sanitized(sanitizer, Path(folder))
            for isa in available_levels():
                print(f"{sanitizer}, {isa}: ", end="", flush=True)
                command = [*fixed_addresses, str(program), str(LEVELS.index(isa))]
                code = subprocess.run(command, env=environment).returncode or code
    return code


if __name__ == "__main__":
    sys.exit(main())
