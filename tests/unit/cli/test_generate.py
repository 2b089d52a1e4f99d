"""`telechat generate`: rows in, rows out; resuming; every option changes something."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from telechat.cli.answer_file import AnswerFile, read_prompts
from telechat.cli.main import main
from telechat.errors import UsageError

PROMPTS = ["hello", "鸡兔同笼", "颜色"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows = [{"input": text, "id": number} for number, text in enumerate(PROMPTS)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(model: Path, *words: object) -> int:
    return main(["generate", str(model), *map(str, words)])


def answers(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_keep_their_fields_and_gain_an_answer(
    tiny_model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert run(tiny_model_folder, "--input-file", prompts, "--output", out, "--max-new-tokens", 4) == 0
    rows = answers(out)
    assert [(row["input"], row["id"]) for row in rows] == [
        (text, number) for number, text in enumerate(PROMPTS)
    ]
    assert all(isinstance(row["output"], str) and row["finish_reason"] in ("stop", "length") for row in rows)


def test_goes_on_where_it_stopped(
    tiny_model_folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    words = ("--input-file", prompts, "--output", out, "--max-new-tokens", 4, "--max-batch-size", 1)
    assert run(tiny_model_folder, *words) == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    # A mark on the kept row shows that it was not computed again; the half row is.
    kept = json.dumps({**json.loads(lines[0]), "output": "kept"}).encode() + b"\n"
    out.write_bytes(kept + lines[1][:10])
    capsys.readouterr()
    assert run(tiny_model_folder, *words) == 0
    assert out.read_bytes() == kept + lines[1] + lines[2]
    assert "1 of 3 rows are answered already" in capsys.readouterr().err
    assert run(tiny_model_folder, *words) == 0
    assert out.read_bytes() == kept + lines[1] + lines[2]


def test_rows_are_written_in_order_as_soon_as_those_before_them_are(
    tiny_model_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that come early wait for the rows before them; an interruption keeps what is in order."""
    from telechat.engine import LLM

    out = tmp_path / "out.jsonl"
    whole = tmp_path / "whole.jsonl"
    words = ("--input-file", prompts, "--max-new-tokens", 2)
    assert run(tiny_model_folder, *words, "--output", whole) == 0
    original = LLM.generate_each
    written = []

    def in_another_order(self: LLM, *rest: object, **more: object) -> Iterator[object]:
        found = dict(original(self, *rest, **more))
        for number in (1, 0):
            yield number, found[number]
            written.append(len(answers(out)))
        raise KeyboardInterrupt

    monkeypatch.setattr(LLM, "generate_each", in_another_order)
    assert run(tiny_model_folder, *words, "--output", out) == 130
    assert written == [0, 2]
    assert answers(out) == answers(whole)[:2]


def test_another_files_answers_are_not_continued(
    tiny_model_folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"input": "other", "output": "x"}\n', encoding="utf-8")
    assert run(tiny_model_folder, "--input-file", prompts, "--output", out) == 2
    assert "row 1 does not answer row 1" in capsys.readouterr().err
    out.write_text("my notes", encoding="utf-8")
    assert run(tiny_model_folder, "--input-file", prompts, "--output", out) == 2
    assert out.read_text(encoding="utf-8") == "my notes"


def test_input_text_prints_the_answer(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny_model_folder, "--input-text", "hello", "--max-new-tokens", 1) == 0
    short = capsys.readouterr().out
    assert run(tiny_model_folder, "--input_text", "hello", "--max_output_length", 9) == 0
    assert len(capsys.readouterr().out) > len(short)


def test_original_option_names(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All names of the original command line, with underscores; each one acts."""
    from telechat.engine import LLM

    seen = []
    original = LLM.generate

    def spy(self: LLM, prompts: list[int], params: object, **more: object) -> object:
        seen.append((self.max_batch_size, params.max_tokens))
        return original(self, prompts, params, **more)

    monkeypatch.setattr(LLM, "generate", spy)
    words = ("--input_text", "hello", "--max_output_length", 2, "--max_batch_size", 5, "--trust_remote_code")
    assert run(tiny_model_folder, *words) == 0
    assert seen == [(5, 2)]
    assert run(tiny_model_folder, *words, "--max_input_length", 3) == 1
    assert "--max-input-length allows 3" in capsys.readouterr().err


def test_max_new_tokens_beats_max_length(
    tiny_model_folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder's max_length of 512 refuses this prompt; --max-new-tokens lifts that limit."""
    long = "qz" * 300
    assert run(tiny_model_folder, "--raw", "--input-text", long) == 1
    assert "--max-new-tokens beats it" in capsys.readouterr().err
    assert run(tiny_model_folder, "--raw", "--input-text", long, "--max-new-tokens", 2) == 0


def test_max_input_length_refuses_before_computing(
    tiny_model_folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    words = ("--raw", "--input-file", prompts, "--output", out, "--max-input-length", 5)
    assert run(tiny_model_folder, *words) == 1
    message = capsys.readouterr().err
    assert "--max-input-length allows 5" in message and "row 2" in message and message.count("\n") == 1
    assert not out.exists()


def test_raw_and_parse_special_change_the_prompt(
    tiny_model_folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from telechat.engine import LLM

    seen: list[list[int]] = []
    original = LLM.generate

    def spy(self: LLM, prompts: list[int], *rest: object, **more: object) -> object:
        seen.append(prompts)
        return original(self, prompts, *rest, **more)

    monkeypatch.setattr(LLM, "generate", spy)
    text = ("--input-text", "<_user>hello", "--max-new-tokens", 1)
    for words in ((), ("--raw",), ("--raw", "--parse-special"), ("--system", "x")):
        assert run(tiny_model_folder, *text, *words) == 0
    chat, raw, parsed, with_system = seen
    user = 4
    assert chat.count(user) == 1 and user not in raw and parsed[0] == user
    assert len(chat) > len(with_system) > len(raw) > len(parsed)


def test_kept_values(tiny_model_folder: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    keep = ("--return-logits", "all", "--return-scores", "top-2")
    options = ("--input-file", prompts, "--output", out, "--max-new-tokens", 3, "--repetition-penalty", "1.5")
    assert run(tiny_model_folder, *options, *keep) == 0
    for row in answers(out):
        logits = load_file(out.parent / row["logits_file"])["logits"]
        assert logits.shape[1] == 300
        assert len(row["scores"]) == logits.shape[0]
        for step in row["scores"]:
            (first, high), (second, low) = step
            assert high >= low and first != second


def test_kept_values_the_other_way_round(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Both options take both forms; one prompt with --output gives a row too."""
    out = tmp_path / "out.jsonl"
    keep = ("--return-scores", "all", "--return-logits", "top-3")
    words = ("--input-text", "hello", "--output", out, "--max-new-tokens", 2, "--repetition-penalty", 2)
    assert run(tiny_model_folder, *words, *keep) == 0
    (row,) = answers(out)
    kept = load_file(out.parent / row["logits_file"])
    assert list(kept) == ["scores"] and kept["scores"].shape[1] == 300
    changed = 0
    for step, scores in zip(row["logits"], kept["scores"], strict=True):
        values = [value for _, value in step]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        changed += sum(scores[token_id] != pytest.approx(value) for token_id, value in step)
    # Between the two came the penalty on tokens of the prompt and the answer.
    assert changed
    assert run(tiny_model_folder, "--input-text", "hello", "--output", tmp_path / "plain.jsonl") == 0
    assert not {"logits", "scores", "logits_file"} & set(answers(tmp_path / "plain.jsonl")[0])


def test_progress_is_drawn_on_a_terminal_only(
    tiny_model_folder: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--input-file", prompts, "--max-new-tokens", 1, "--output")
    assert run(tiny_model_folder, *words, tmp_path / "a.jsonl") == 0
    assert "3/3" not in capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(tiny_model_folder, *words, tmp_path / "b.jsonl") == 0
    shown = capsys.readouterr()
    assert "3/3" in shown.err and shown.out == f"{tmp_path / 'b.jsonl'}\n"


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--input-text", " "], 1, "The prompt is empty"),
        (["--input-text", "x", "--parse-special"], 2, "goes with --raw"),
        (["--input-text", "x", "--raw", "--system", "y"], 2, "no system prompt"),
        (["--input-file", "in.jsonl"], 2, "needs --output"),
        (["--input-text", "x", "--return-logits", "all"], 2, "need --output"),
        (["--input-text", "x", "--return-scores", "5"], 2, "top-5"),
        (["--input-text", "x", "--return-scores", "top-0"], 2, "top-5"),
        (["--input-text", "x", "--input-file", "y"], 2, "not allowed with"),
        ([], 2, "required"),
        (["--input-file", "none.jsonl", "--output", "o"], 2, "none.jsonl: No such file"),
        (["--input-text", "x", "--temperature", "-1"], 2, "temperature is -1"),
        (["--input-text", "x", "--top-p", "2"], 2, "top_p is 2"),
        (["--input-text", "x", "--max-new-tokens", "0"], 2, "0 is below 1"),
        (["--input-text", "x", "--max-model-len", "3"], 1, "accepts 2"),
        (["--input-text", "x", "--output", "/dev/null/o.jsonl"], 2, "/dev/null"),
    ],
)
def test_mistakes(
    tiny_model_folder: Path, words: list[str], code: int, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_model_folder, *words) == code
    message = capsys.readouterr().err
    assert part in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"input": "a"}\n{"inptu": "b"}\n', "line 2"),
        ('{"input": "a"}\n["b"]\n', "line 2"),
        ('{"input": " "}\n', "line 1"),
        ('{"input": "a"\n', "line 1 is not JSON"),
        ("\n", "holds no rows"),
    ],
)
def test_malformed_input(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=part):
        read_prompts(path)


def test_separators_inside_strings_are_not_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    rows = [{"input": "a\u2028b"}, {"input": "c\x85d"}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_prompts(path) == rows
    out = tmp_path / "out.jsonl"
    for expected in (0, 2):
        with AnswerFile(out, rows) as output:
            assert output.num_done == expected
            if not expected:
                output.write({**row, "output": "\u2028"} for row in rows)


def test_a_misspelt_folder_is_not_made(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "resluts" / "out.jsonl"
    assert run(tmp_path, "--input-file", prompts, "--output", out) == 2
    assert f"The folder {out.parent} for --output does not exist." in capsys.readouterr().err
    assert not out.parent.exists()
