"""The page about transformers and the example do what they show."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_runs(folder_bpe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "huggingface.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 4 and '"models/12B"' in blocks[0]
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace('"models/12B"', repr(str(folder_bpe))), scope)  # the page itself is what is tested
    assert [message["role"] for message in scope["history"]] == ["user", "bot"] * 2
    assert scope["loss"].item() > 0
    assert AutoModelForCausalLM.from_pretrained("saved").config.vocab_size == 300
    assert AutoTokenizer.from_pretrained("saved")("你好")["input_ids"]


def test_the_example_runs(
    folder_bpe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "short-answers"
    shutil.copytree(folder_bpe, folder)
    (folder / "generation_config.json").write_text('{"max_new_tokens": 8}', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["hf_quickstart.py", str(folder)])
    runpy.run_path(str(ROOT / "examples" / "hf_quickstart.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "生抽与老抽的区别？" in printed and "你是谁？" in printed
