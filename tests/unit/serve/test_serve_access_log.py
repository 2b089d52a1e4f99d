"""The access log: what a line holds, and that a log which cannot be written hurts nobody."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.errors import ConfigError
from telechat.serve.access_log import MAX_WAITING_LINES, AccessLog
from telechat.serve.app import create_app
from telechat.serve.auth import Key, KeyRing
from telechat.serve.settings import ServeSettings

CHAT = "/v1/chat/completions"
SECRET = "a private question"
BODY = {"messages": [{"role": "user", "content": SECRET}]}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def logged(path: Path, engine: FakeEngine | None = None, **fields: Any) -> tuple[TestClient, AccessLog]:
    """A client of a service that logs to `path`."""
    log = AccessLog(path)
    settings = ServeSettings(access_log=str(path), **fields)
    ring = KeyRing([Key.of("alice", "sk-a")])
    app = create_app(engine or FakeEngine(), settings, ring=ring, access_log=log)
    client = TestClient(app, raise_server_exceptions=False, headers={"Authorization": "Bearer sk-a"})
    return client, log


def test_a_line_for_every_request(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    client, log = logged(path)
    answer = client.post(CHAT, json=BODY, headers={"X-Request-Id": "id-1"})
    client.get("/nope?secret=1")
    client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
    log.close()
    first, second, third = lines_of(path)
    assert answer.status_code == 200
    assert {
        name: first[name]
        for name in ("id", "client", "key", "method", "path", "status", "prompt_tokens", "completion_tokens")
    } == {
        "id": "id-1",
        "client": "testclient",
        "key": "alice",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "prompt_tokens": len(SECRET),
        "completion_tokens": 6,
    }
    assert 0 <= first["first_token_seconds"] <= first["seconds"] < 60
    assert first["time"].endswith("+00:00")
    assert (second["path"], second["status"]) == ("/nope", 404) and "prompt_tokens" not in second
    assert third["status"] == 401 and "key" not in third


def test_prompts_only_where_asked_for(tmp_path: Path) -> None:
    for asked in (False, True):
        path = tmp_path / f"access-{asked}.jsonl"
        client, log = logged(path, log_prompts=asked)
        client.post(CHAT, json=BODY)
        log.close()
        assert (SECRET in path.read_text(encoding="utf-8")) is asked
    assert lines_of(path)[0]["prompts"] == [SECRET]


def test_a_prompt_that_is_no_text_does_not_end_the_log(tmp_path: Path) -> None:
    def fails() -> str:
        raise IndexError("piece id is out of range")

    log = AccessLog(tmp_path / "access.jsonl")
    log.put({"number": 1}, [fails])
    log.put({"number": 2})
    log.close()
    assert (lines_of(tmp_path / "access.jsonl"), log.num_lost) == ([{"number": 2}], 1)


def test_a_prompt_that_the_engine_refuses_is_not_decoded(tmp_path: Path) -> None:
    client, log = logged(tmp_path / "access.jsonl", log_prompts=True)
    # The fake cannot decode this id, as the official tokenizers of the first models cannot.
    assert client.post("/infer_token", json={"input_id": [2**31 - 1]}).status_code == 422
    log.close()
    (line,) = lines_of(tmp_path / "access.jsonl")
    assert (line["status"], "prompts" in line) == (422, False)


def test_prompts_without_a_log_are_refused() -> None:
    with pytest.raises(ConfigError, match="--log-prompts"):
        ServeSettings(log_prompts=True)


def test_watchers_do_not_fill_the_log(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    engine = FakeEngine()
    client, log = logged(path, engine)
    for route in ("/health", "/ready", "/metrics"):
        assert client.get(route).status_code == 200
    engine.is_alive = False
    client.get("/ready")
    log.close()
    (line,) = lines_of(path)
    assert (line["path"], line["status"]) == ("/ready", 503)


def test_an_answer_that_fails_half_way_is_told(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    engine = FakeEngine()
    engine.scripts["slow"] = ("a", 1000.0)
    client, log = logged(path, engine, request_seconds=0.1)
    client.post(CHAT, json={"messages": [{"role": "user", "content": "slow"}], "stream": True})
    log.close()
    (line,) = lines_of(path)
    assert (line["status"], line["error"], line["completion_tokens"]) == (200, "timeout", 1)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_the_engine_gives_up_is_told(tmp_path: Path, streamed: bool) -> None:
    engine = FakeEngine()
    engine.finish_reason = "cancelled"
    client, log = logged(tmp_path / "access.jsonl", engine)
    client.post(CHAT, json={**BODY, "stream": streamed})
    assert "telechat_requests_failed_total 1.0" in client.get("/metrics").text
    log.close()
    assert lines_of(tmp_path / "access.jsonl")[0]["error"] == "unavailable"


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    log = AccessLog(path, max_file_bytes=100, num_old_files=2)
    for number in range(100):
        log.put({"number": number})
    log.close()
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["access.jsonl", "access.jsonl.1", "access.jsonl.2"]
    kept = [line["number"] for name in reversed(names) for line in lines_of(tmp_path / name)]
    assert kept == list(range(kept[0], 100)) and len(kept) > 10
    assert all(file.stat().st_size <= 100 for file in tmp_path.iterdir())
    assert log.num_lost == 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")
def test_only_its_owner_reads_the_log(tmp_path: Path) -> None:
    AccessLog(tmp_path / "log").close()
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--access-log"):
        AccessLog(tmp_path / "missing" / "log")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_costs_lines_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        client, log = logged(Path("/dev/full"))
        for _ in range(5):
            assert client.post(CHAT, json=BODY).status_code == 200
        log.close()
    assert log.num_lost == 5
    assert caplog.text.count("access log cannot be written") == 1
    assert "telechat_access_log_lost_lines_total 5.0" in client.get("/metrics").text


def test_a_torn_line_is_ended_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    log = AccessLog(path)
    write, is_full = os.write, threading.Event()

    def half(handle: int, data: bytes) -> int:
        if is_full.is_set():
            raise OSError(28, "No space left on device")
        if b"torn" in data:
            is_full.set()
            return write(handle, data[:5])
        return write(handle, data)

    monkeypatch.setattr(os, "write", half)
    log.put({"text": "torn"})
    assert is_full.wait(10)
    while not log.num_lost:
        time.sleep(0.005)
    is_full.clear()
    log.put({"text": "whole"})
    log.close()
    assert path.read_text().splitlines()[-1] == '{"text":"whole"}'


def test_a_disk_that_hangs_does_not_hold_up_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AccessLog(tmp_path / "log")
    hangs = threading.Event()
    write = os.write
    monkeypatch.setattr(os, "write", lambda *words: (hangs.wait(60), write(*words))[1])
    for _ in range(MAX_WAITING_LINES + 50):
        log.put({})
    # One is being written, the rest wait; had a request waited for the disk, none would be lost.
    assert log.num_lost in (49, 50)
    hangs.set()
    log.close()


def test_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log = AccessLog(None)
    log.put({"text": "café 好"})
    log.close()
    assert capsys.readouterr().err == '{"text":"café 好"}\n'
