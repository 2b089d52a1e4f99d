"""Batch files: which rows are read, answered, kept and asked again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.unit.serve.serve_fakes import DEFAULT_ANSWER, FakeEngine

from telechat.engine import EngineStepError
from telechat.errors import UsageError
from telechat.serve.batch import answer_batch
from telechat.serve.batch_file import BatchOutput, BatchRow, is_batch_file, read_batch

CHAT = "/v1/chat/completions"


def row(custom_id: str, text: str = "hi", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "fake", "messages": messages, **body},
    }


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answer(path: Path, output: Path, engine: FakeEngine, **options: Any) -> None:
    rows = read_batch(path)
    with BatchOutput(output, rows) as kept:
        answer_batch(engine, kept.missing(rows), kept.write, max_batch_size=4, **options)
        kept.sort()


def test_what_is_a_batch_file(tmp_path: Path) -> None:
    assert is_batch_file(write(tmp_path / "batch", [row("1")]))
    assert is_batch_file(write(tmp_path / "bad", [{"custom_id": 3, "url": "x"}]))
    assert not is_batch_file(write(tmp_path / "plain", [{"input": "hi", "custom_id": "1"}]))
    assert not is_batch_file(write(tmp_path / "empty", []))
    assert not is_batch_file(tmp_path / "missing")


def test_rows_are_answered_as_the_service_would(tmp_path: Path) -> None:
    engine = FakeEngine()
    path = write(tmp_path / "in", [row("a"), row("b", n=2), row("c", model=None), row("d", model="typed")])
    answer(path, tmp_path / "out", engine, model_alias="typed")
    found = lines(tmp_path / "out")
    assert [one["custom_id"] for one in found] == ["a", "b", "c", "d"]
    for one in found:
        assert set(one) == {"id", "custom_id", "response", "error"} and one["error"] is None
        assert one["response"]["status_code"] == 200 and one["response"]["request_id"]
        assert one["response"]["body"]["object"] == "chat.completion"
    assert found[0]["response"]["body"]["choices"][0]["message"]["content"] == "你好, world"
    assert len(found[1]["response"]["body"]["choices"]) == 2
    assert len({one["id"] for one in found}) == 4
    assert engine.num_open == 0


def test_other_routes(tmp_path: Path) -> None:
    completion = {"custom_id": "c", "url": "/v1/completions", "body": {"prompt": "hi"}}
    answer(write(tmp_path / "in", [completion]), tmp_path / "out", FakeEngine())
    assert lines(tmp_path / "out")[0]["response"]["body"]["object"] == "text_completion"


def test_errors_stay_with_their_rows(tmp_path: Path) -> None:
    engine = FakeEngine()
    # Rows run side by side, and the fake tells scripts apart by their prompts.
    engine.scripts.update({"boom": (EngineStepError("boom"),), "hi": DEFAULT_ANSWER})
    rows = [
        row("good"),
        row("field", temperature="hot"),
        row("model", model="other"),
        row("boom", "boom"),
        row("stream", stream=True),
        {**row("url"), "url": "/v1/other"},
        {**row("method"), "method": "GET"},
        {"custom_id": "body", "url": CHAT},
        row("nan", temperature=float("nan")),
        row("half", "\ud83d"),
    ]
    answer(write(tmp_path / "in", rows), tmp_path / "out", engine)
    found = {one["custom_id"]: one for one in lines(tmp_path / "out")}
    # A failure of the server is no answer: it is asked again next time, and so is not sorted into the others.
    statuses = {name: (one["response"] or {}).get("status_code") for name, one in found.items()}
    assert statuses.pop("boom", 500) == 500
    assert statuses == {
        "good": 200,
        "field": 400,
        "model": 404,
        "nan": 400,
        "half": 400,
        **dict.fromkeys(("stream", "url", "method", "body")),
    }
    assert found["field"]["response"]["body"]["error"]["param"] == "temperature"
    for name, word in (("stream", "stream"), ("url", "/v1/other"), ("method", "GET"), ("body", "body")):
        assert found[name]["error"]["code"] == "invalid_request" and word in found[name]["error"]["message"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("3", "line 1 has no text under custom_id"),
        ('{"custom_id": ""}', "line 1 has no text under custom_id"),
        ('{"custom_id": "1"}\n\n{"custom_id": "1"}', "line 3 has the custom_id '1' of an earlier line"),
    ],
)
def test_files_that_cannot_be_a_batch(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "in").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_batch(tmp_path / "in")


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    path, output = write(tmp_path / "in", [row(str(number)) for number in range(5)]), tmp_path / "out"
    answer(path, output, FakeEngine())
    whole = lines(output)
    kept = {**whole[3], "id": "kept"}
    failure = {**whole[1], "response": {"status_code": 503, "request_id": "x", "body": {}}}
    with output.open("w", encoding="utf-8") as file:
        for one in (kept, failure):
            file.write(json.dumps(one) + "\n")
        file.write(json.dumps(whole[0])[:20])
    rows = read_batch(path)
    with BatchOutput(output, rows) as opened:
        assert opened.num_done == 1
        assert [one.custom_id for one in opened.missing(rows)] == ["0", "1", "2", "4"]
        # What is dropped is dropped from the file at once.
        assert lines(output) == [kept]
    answer(path, output, FakeEngine())
    found = lines(output)
    assert [one["custom_id"] for one in found] == ["0", "1", "2", "3", "4"]
    assert found[3]["id"] == "kept" and all(one["response"]["status_code"] == 200 for one in found)
    before = output.read_bytes()
    answer(path, output, FakeEngine())
    assert output.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "out"]


def test_answers_are_on_the_disk_as_they_come(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.scripts["late"] = (0.3, "x")
    rows = [BatchRow(str(number), CHAT, row("x", text)["body"]) for number, text in enumerate(("late", "hi"))]
    seen = []
    with BatchOutput(tmp_path / "out", rows) as output:

        def keep(one: dict[str, Any]) -> None:
            output.write(one)
            seen.append([entry["custom_id"] for entry in lines(tmp_path / "out")])

        answer_batch(engine, rows, keep, max_batch_size=2)
        assert seen == [["1"], ["1", "0"]]
        output.sort()
    assert [one["custom_id"] for one in lines(tmp_path / "out")] == ["0", "1"]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    rows = [BatchRow("1", CHAT, {})]
    for content in (
        '{"input": "x", "output": "y"}\n',
        "notes\n",
        '{"custom_id": "2", "response": {}, "error": 0}\n',
    ):
        (tmp_path / "out").write_text(content, encoding="utf-8")
        with pytest.raises(UsageError, match=r"Name another --output|line 1"):
            BatchOutput(tmp_path / "out", rows)
        assert (tmp_path / "out").read_text(encoding="utf-8") == content


@pytest.mark.skipif(os.name == "nt", reason="no flock")
def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    rows = [BatchRow("1", CHAT, {})]
    with BatchOutput(tmp_path / "out", rows), pytest.raises(UsageError, match="Another run is writing"):
        BatchOutput(tmp_path / "out", rows)


def test_what_stops_the_batch_arrives_as_it_is(tmp_path: Path) -> None:
    def full(answer: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    engine = FakeEngine()
    rows = [BatchRow(str(number), CHAT, row("x")["body"]) for number in range(20)]
    with pytest.raises(OSError, match="No space left"):
        answer_batch(engine, rows, full, max_batch_size=2)
    assert engine.num_open == 0


def test_the_batch_is_kept_full(tmp_path: Path) -> None:
    """Twice as many rows are asked as are computed at once, and no more."""
    engine = FakeEngine()
    engine.scripts["hi"] = ("a", 0.05, "b")
    most = 0
    start = engine.stream

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal most
        stream = start(*args, **options)
        most = max(most, engine.num_open)
        return stream

    engine.stream = counted  # type: ignore[method-assign]
    rows = [BatchRow(str(number), CHAT, row("x")["body"]) for number in range(40)]
    found: list[Any] = []
    answer_batch(engine, rows, found.append, max_batch_size=5)
    assert (most, len(found)) == (10, 40)


def test_the_row_of_the_page(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "batch.md").read_text(encoding="utf-8")
    request, shown = (json.loads(part.split("```")[0]) for part in page.split("```json\n")[1:])
    answer(write(tmp_path / "in", [request]), tmp_path / "out", FakeEngine())
    found = lines(tmp_path / "out")[0]
    assert set(found) == set(shown) and set(found["response"]) == set(shown["response"])
    assert found["response"]["status_code"] == 200
