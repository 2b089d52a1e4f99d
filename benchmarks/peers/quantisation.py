"""The environment of the peer of `make bench-quality`: llm-compressor, which shares the project's torch.

Its packages never enter the project's own. Knows nothing of measuring.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.build import FOLDER

REQUIREMENTS = FOLDER / "quantisation_requirements.txt"
WORKER = FOLDER.parent / "workers" / "llmcompressor_gptq.py"
ENVIRONMENT = FOLDER.parents[1] / ".oracles" / "llmcompressor"
PYTHON = ENVIRONMENT / "bin" / "python"


def pins() -> dict[str, str]:
    """Package -> version."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def prepare() -> None:
    """Make the environment where it is not there yet, or was made from other packages.

    Raises:
        subprocess.CalledProcessError: it cannot be made; pip has said why.
    """
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    stamp = ENVIRONMENT / "peers.sha256"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    scheme = {"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    stamp.write_text(wanted, encoding="utf-8")


def quantise(llama: Path, rows: Sequence[Sequence[int]], out: Path) -> Path:
    """Have the peer quantise a Llama folder with these rows; returns `out`, the weights its integers mean.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is beside `out`.
    """
    rows_file = out.with_suffix(".rows.json")
    rows_file.write_text(json.dumps([list(row) for row in rows]), encoding="utf-8")
    # -P: the worker's folder has modules of other names than the packages they shadow.
    command = [str(PYTHON), "-P", str(WORKER), str(llama), str(rows_file), str(out)]
    with out.with_suffix(".log").open("w", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return out
