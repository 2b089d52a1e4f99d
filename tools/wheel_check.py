"""Build the wheel, look into it, install it elsewhere and run the command from there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Each must be in the wheel: a build that loses package data still imports, and fails only for users.
EXPECTED = (
    "telechat/demo_model/config.json",
    "telechat/demo_model/model.safetensors",
    "telechat/demo_model/tokenizer.json",
    "telechat/demo_model/README.md",
    "telechat/ops/cpu/csrc/telechat.h",
    "telechat/serve/page/static/index.html",
)


def main() -> int:
    """Return 0 when the wheel is complete and works."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, str(ROOT)], check=True)
        wheel = next(Path(folder).glob("telechat-*.whl"))
        names = set(zipfile.ZipFile(wheel).namelist())
        problems = [f"{name} is missing from the wheel" for name in EXPECTED if name not in names]
        problems += [f"{name} does not belong in the wheel" for name in names if name.startswith("tests/")]
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        if problems:
            return 1
        installed = Path(folder, "installed")
        subprocess.run([*pip, "install", "--no-deps", "--target", str(installed), str(wheel)], check=True)
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        for words in (["--version"], ["doctor", "demo"]):
            command = [sys.executable, "-m", "telechat", *words]
            subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        code = "import telechat; print(telechat.__file__)"
        place = subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        ).stdout
        if not place.startswith(str(installed)):
            print(f"error: the check ran {place.strip()}, not the installed wheel", file=sys.stderr)
            return 1
        size = wheel.stat().st_size / 2**20
        print(f"{wheel.name}: {len(names)} files, {size:.1f} MiB; installs and runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
