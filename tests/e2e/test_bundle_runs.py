"""A real bundle of this checkout: made, checked, installed where no index can be reached, and used there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.installs,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.name == "nt", reason="the shell installer"),
]


def test_the_real_bundle(tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    make = [sys.executable, "-m", "telechat", "bundle", "make", str(out), str(tiny_model_folder)]
    subprocess.run(make, check=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    # Whoever asks an index fails.
    environment = {**kept, "PIP_INDEX_URL": "http://127.0.0.1:9/", "PYTHON": sys.executable}
    subprocess.run(["sh", str(out / "install.sh")], cwd=tmp_path, env=environment, check=True)
    program = tmp_path / "bundle-venv" / "bin" / "telechat"
    model = out / "models" / tiny_model_folder.name
    for words in (["bundle", "verify", str(out)], ["doctor", str(model)]):
        done = subprocess.run([program, *words], cwd=tmp_path, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path / "bundle-venv") in done.stdout and "complete" in done.stdout
