"""The page's pure modules, tested by Node's own runner; skipped where there is no Node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node is not installed; it runs the tests of the page's modules")
@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.test.mjs")), ids=lambda path: path.name)
def test_page_modules(file: Path) -> None:
    assert NODE is not None
    done = subprocess.run([NODE, "--test", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_module_tests() -> None:
    assert list(FOLDER.glob("*.test.mjs"))
