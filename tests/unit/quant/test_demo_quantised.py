"""The demo model in few bits still answers, by every product; and the options of the command line arrive."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from telechat import LLM, SamplingParams
from telechat.cli import quantize_run
from telechat.cli.main import main
from telechat.errors import ConfigError
from telechat.ops.cpu import library

GREEDY = SamplingParams(temperature=0.0, max_tokens=96)
# Questions of its training tasks whose answers leave no choice, and a part that must be in them.
QUESTIONS = {
    "鸡兔同笼，头35，脚94，各有几只？": "兔有47-35=12只",
    "生抽与老抽的区别？": "生抽颜色浅，老抽颜色深",
    "你是谁？": "TeleChat",
}


def answers(llm: LLM) -> dict[str, str]:
    return {
        question: llm.chat([{"role": "user", "content": question}], GREEDY).text for question in QUESTIONS
    }


@pytest.mark.parametrize("has_kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize(("name", "group_size"), [("int8", None), ("int4", 32), ("int4", 128)])
def test_still_answers(
    name: str, group_size: int | None, has_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_kernels:
        monkeypatch.setattr(library, "obstacle", lambda: "there is no compiler")
    elif library.obstacle():
        pytest.skip(str(library.obstacle()))
    llm = LLM("demo", quantize=name, group_size=group_size, deterministic=False)  # type: ignore[arg-type]
    if has_kernels:
        assert f"{name} in groups of {group_size or 32}" in llm.executor.describe()
    given = answers(llm)
    assert all(part in given[question] for question, part in QUESTIONS.items()), given


def test_a_loaded_model_is_not_quantised_by_llm() -> None:
    llm = LLM("demo")
    assert llm.model is not None
    with pytest.raises(ConfigError, match="already loaded is not quantised here"):
        LLM(llm.model, llm.tokenizer, quantize="int4")


def test_options_of_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["generate", "demo", "--input-text", "你是谁？", "--max-new-tokens", "2", "--log-level", "info"]
    assert main(words) == 0
    assert "in groups of" not in capsys.readouterr().err
    for options, expected in (
        (["--quantize", "int4"], "int4 in groups of 32"),
        (["--quantize", "int8", "--group-size", "64"], "int8 in groups of 64"),
    ):
        assert main([*words, *options]) == 0
        log = capsys.readouterr().err
        assert expected in log or (library.obstacle() and "quantised layers" in log)
    assert main([*words, "--group-size", "64"]) == 1
    assert "the weights are not to be quantised" in capsys.readouterr().err


def test_layers_that_do_not_divide(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny_model_folder), "--input-text", "hi", "--quantize", "int4"]) == 1
    assert "transformer.h.0.mlp.down_proj.weight cannot be quantised" in capsys.readouterr().err


def test_examples_of_the_help_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after another, as somebody would paste them."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "quantize.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for command in quantize_run.EXAMPLES:
        assert main(shlex.split(command)[1:]) == 0
    assert "生抽颜色浅" in capsys.readouterr().out
    commands = re.findall(r"```bash\n(telechat chat .*?)\n```", page)
    assert len(commands) == 1 and main(shlex.split(commands[0])[1:]) == 0
    assert "生抽颜色浅" in capsys.readouterr().out
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/quantize.md", "exec"), {})
    assert "TeleChat" in capsys.readouterr().out
