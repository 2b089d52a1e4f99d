"""`telechat generate` with an OpenAI batch file: the model's own answers, resuming, options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from telechat.cli.main import main

CHAT = "/v1/chat/completions"


def row(custom_id: str, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def test_a_batch_gets_the_models_own_answers(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from telechat.engine import LLM

    messages = [{"role": "user", "content": "鸡兔同笼"}]
    greedy = {"max_tokens": 5, "temperature": 0}
    model = str(tiny_model_folder)
    path = write(
        tmp_path / "in.jsonl",
        [
            row("chat", CHAT, model=model, messages=messages, **greedy),
            row("text", "/v1/completions", prompt="hello", **greedy),
            row("vector", "/v1/embeddings", input="hello"),
            row("bad", CHAT, messages=[]),
        ],
    )
    out = tmp_path / "out.jsonl"
    command = ["generate", model, "--input-file", str(path), "--output", str(out), "--max-batch-size", "2"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert "1 of 4 rows were refused" in captured.err
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [one["custom_id"] for one in found] == ["chat", "text", "vector", "bad"]
    bodies = [one["response"]["body"] for one in found]
    llm = LLM(tiny_model_folder)
    chat = llm.chat(messages, temperature=0, max_tokens=5)
    text = llm.generate("hello", temperature=0, max_tokens=5)[0]
    assert bodies[0]["choices"][0]["message"]["content"] == chat.text
    assert bodies[1]["choices"][0]["text"] == text.text
    assert len(bodies[2]["data"][0]["embedding"]) == llm.config.hidden_size
    assert found[3]["response"]["status_code"] == 400

    before = out.read_bytes()
    assert main(command) == 0
    assert "4 of 4 rows are answered already." in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        "--temperature 0",
        "--seed 0",
        "--top-k 0",
        "--top-p 0.5",
        "--repetition-penalty 1",
        "--max-new-tokens 3",
        "--stop x",
        "--system x",
        "--raw",
        "--max-input-length 3",
        "--return-logits all",
        "--return-scores top-2",
    ],
)
def test_options_that_rows_decide_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    path = write(tmp_path / "in.jsonl", [row("1", CHAT, messages=[])])
    out = tmp_path / "out.jsonl"
    assert main(["generate", "demo", "--input-file", str(path), "--output", str(out), *words.split()]) == 2
    assert f"{words.split()[0]} does not go with a batch file." in capsys.readouterr().err
    assert not out.exists()


def test_rows_without_an_answer_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.serve.serve_fakes import DEFAULT_ANSWER, FakeEngine

    from telechat.engine import EngineStepError

    engine = FakeEngine()
    engine.scripts.update({"boom": (EngineStepError("boom"),), "hi": DEFAULT_ANSWER})
    monkeypatch.setattr("telechat.cli.batch.start_engine", lambda model, args: (engine, 4))
    rows = [row(text, CHAT, messages=[{"role": "user", "content": text}]) for text in ("boom", "hi")]
    path, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    command = ["generate", "demo", "--input-file", str(path), "--output", str(out)]
    assert main(command) == 1
    assert "1 rows got no answer; run the same command again" in capsys.readouterr().err
    engine.scripts.clear()
    assert main(command) == 0
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(one["custom_id"], one["response"]["status_code"]) for one in found] == [
        ("boom", 200),
        ("hi", 200),
    ]
