"""The two examples that stand for the original's scripts, run as scripts are."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from telechat.cli.main import main

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.mark.parametrize("bits", [8, 4])
def test_example(
    bits: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["quantize.py", "--model", "demo", "--out", str(out)])
    runpy.run_path(str(EXAMPLES / f"quantize_{bits}bit.py"), run_name="__main__")
    assert "calibration tokens for layers of up to 768 inputs are too few" in caplog.text
    settings = json.loads((out / "quantize_config.json").read_text())
    assert (settings["bits"], settings["group_size"], settings["desc_act"]) == (bits, 128, False)
    answer = capsys.readouterr().out.strip()
    assert answer if bits == 4 else "TeleChat" in answer


def test_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command of the page, one after another, and its Python."""
    page = (EXAMPLES.parent / "docs" / "quantization.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    commands = [
        line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()
    ]
    assert len(commands) == 6
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    printed = capsys.readouterr().out
    assert "生抽颜色浅" in printed and "KL divergence" in printed
    assert "<svg" in (tmp_path / "runs" / "report.html").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/quantization.md", "exec"), {})
    assert "TeleChat" in capsys.readouterr().out
