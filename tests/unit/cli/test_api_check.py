"""`telechat api-check`: the table, the exit code, and each option."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.broken_api import KEY, MODEL, BrokenApi
from tests.e2e.fake_api import serve_in_thread

from telechat.cli.main import main
from telechat.conformance.suite import CHECKS


@pytest.fixture(scope="module")
def sound() -> Iterator[str]:
    with serve_in_thread(BrokenApi().app()) as url:
        yield url


def test_a_sound_server(
    sound: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TELECHAT_API_KEY", raising=False)
    report = tmp_path / "checks.json"
    assert main(["api-check", sound, "--api-key", KEY, "--json", str(report)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CHECKS) + 1
    assert lines[0].startswith("ok       models-list") and "Open WebUI, Dify" in lines[0]
    assert lines[-1] == f"{len(CHECKS)} passed, 0 failed, 0 skipped"
    found = json.loads(report.read_text(encoding="utf-8"))
    assert (found["url"], found["model"], found["passed"], found["failed"]) == (sound, MODEL, len(CHECKS), 0)
    names = [check["name"] for check in found["checks"]]
    assert names == [check.name for check in CHECKS]
    assert set(found["checks"][0]) == {"name", "needed_by", "why", "result", "detail"}


def test_a_failure_is_named_and_ends_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELECHAT_API_KEY", KEY)
    with serve_in_thread(BrokenApi("no [DONE]").app()) as url:
        assert main(["api-check", f"{url}/v1"]) == 1
    output = capsys.readouterr().out
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1 and "stream-done" in failed[0]
    assert "the last event is not data: [DONE]" in failed[0] and "clients wait for more" in failed[0]


def test_the_model_that_is_asked(sound: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["api-check", sound, "--api-key", KEY, "--model", "other"]) == 1
    assert "There is no such model." in capsys.readouterr().out


def test_nothing_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["api-check", "http://127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: Nothing answers at http://127.0.0.1:9") and len(error.splitlines()) == 1


def test_a_report_without_a_folder_is_known_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["api-check", "http://127.0.0.1:9", "--json", str(tmp_path / "none" / "checks.json")]) == 2
    assert "for --json does not exist" in capsys.readouterr().err
