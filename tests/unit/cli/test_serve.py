"""`telechat serve`: every flag arrives where it acts, and what is refused before a model is loaded."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path
from typing import Any

import pytest

import telechat.checkpoint
import telechat.engine
import telechat.serve.server
from telechat.checkpoint import resolve_model
from telechat.cli.main import main
from telechat.serve.settings import ServeSettings


class Recorder:
    """Stands in for the server: keeps the settings, and what the model would be loaded with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = ServeSettings()
        self.loaded: dict[str, Any] = {}
        monkeypatch.setattr(telechat.serve.server, "run_server", self.run)
        monkeypatch.setattr(telechat.engine, "LLM", self.load)
        monkeypatch.setattr(telechat.engine.AsyncEngine, "spawn", lambda load, tokenizer, max_pending: load())
        monkeypatch.setattr(telechat.checkpoint, "resolve_model", lambda name: resolve_model("demo"))

    def run(self, load: Any, settings: ServeSettings) -> int:
        self.settings = settings
        load()
        return 0

    def load(self, model: str, **settings: Any) -> None:
        self.loaded = {"model": model, **settings}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_defaults(served: Recorder) -> None:
    assert main(["serve"]) == 0
    assert served.settings == ServeSettings(host="127.0.0.1", port=8070, access_log="-")
    assert served.loaded["model"] == "demo" and "max_batch_size" not in served.loaded


def test_flags_arrive(served: Recorder) -> None:
    words = (
        "serve some/model --host 127.0.0.2 --port 9000 --api-key sk-x --served-model-name mine "
        "--cors-origin https://a.example --cors_origin https://b.example --max-batch-size 3 "
        "--device cpu --dtype float16 --attention sdpa --max-model-len 99"
    )
    assert main(shlex.split(words)) == 0
    assert served.settings == ServeSettings(
        host="127.0.0.2",
        port=9000,
        api_keys=("sk-x",),
        served_model_name="mine",
        cors_origins=("https://a.example", "https://b.example"),
        access_log="-",
    )
    assert served.loaded == {
        "model": "some/model",
        "device": "cpu",
        "dtype": "float16",
        "attention": "sdpa",
        "max_model_len": 99,
        "max_batch_size": 3,
    }


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--api-key-file keys.yaml", "key_file", Path("keys.yaml")),
        ("--max-pending-requests 7", "max_pending_requests", 7),
        ("--max-prompt-tokens 99", "max_prompt_tokens", 99),
        ("--max-body-size 2MiB", "max_body_bytes", 2 * 1024 * 1024),
        ("--request-timeout 2.5", "request_seconds", 2.5),
        ("--drain-timeout 5", "shutdown_seconds", 5),
        ("--access-log access.jsonl", "access_log", "access.jsonl"),
        ("--access-log none", "access_log", None),
        ("--log-level warning", "access_log", None),
        ("--log-prompts", "log_prompts", True),
        ("--tls-cert a.crt --tls-key a.key", "tls_cert", Path("a.crt")),
        ("--tls-cert a.crt --tls-key a.key", "tls_key", Path("a.key")),
    ],
)
def test_every_option_of_the_service_arrives(served: Recorder, words: str, name: str, value: object) -> None:
    assert main(["serve"]) == 0
    assert getattr(served.settings, name) != value
    assert main(["serve", *words.split()]) == 0
    assert getattr(served.settings, name) == value


def test_a_quiet_log_is_no_reason_to_leave_out_a_wanted_access_log(served: Recorder) -> None:
    assert main(["serve", "--log-level", "warning", "--access-log", "-"]) == 0
    assert served.settings.access_log == "-"


@pytest.mark.parametrize(
    "words",
    [
        "--request-timeout 0",
        "--request-timeout -1",
        "--request-timeout inf",
        "--request-timeout nan",
        "--request-timeout soon",
        "--drain-timeout 0",
        "--max-body-size 0",
        "--replicas 0",
    ],
)
def test_limits_that_are_none(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words.split()]) == 2
    assert words.split()[0] in capsys.readouterr().err


def test_replicas(served: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many engines are started as asked for, with as many answers pending as the service lets in."""
    spawned: list[Any] = []

    class Engine:
        num_restarts = 0

        def __init__(self) -> None:
            self.is_closed = False

        def close(self) -> None:
            self.is_closed = True

    def spawn(load: Any, tokenizer: Any, max_pending: int) -> Engine:
        load()
        if len(spawned) == 3:
            raise ValueError("no memory")
        spawned.append((Engine(), max_pending))
        return spawned[-1][0]

    started: list[Any] = []

    def run(start: Any, settings: ServeSettings) -> int:
        started.append(start())
        return 0

    monkeypatch.setattr(telechat.engine.AsyncEngine, "spawn", spawn)
    monkeypatch.setattr(telechat.serve.server, "run_server", run)
    assert main(["serve", "--device", "cpu", "--max-pending-requests", "10"]) == 0
    assert [max_pending for _, max_pending in spawned] == [160] and isinstance(started[0], Engine)
    spawned.clear()
    assert main(["serve", "--device", "cpu", "--replicas", "3"]) == 0
    assert started[1].replicas == tuple(engine for engine, _ in spawned) and len(spawned) == 3
    spawned.clear()
    with pytest.raises(ValueError, match="no memory"):
        main(["serve", "--device", "cpu", "--replicas", "4", "--debug"])
    assert all(engine.is_closed for engine, _ in spawned)


def test_key_by_flag_then_environment(served: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELECHAT_API_KEY", "sk-environment")
    assert main(["serve"]) == 0
    assert served.settings.api_keys == ("sk-environment",)
    assert main(["serve", "--api-key", "sk-flag"]) == 0
    assert served.settings.api_keys == ("sk-flag",)


def test_anonymous_access_is_a_decision_of_its_own(
    served: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--host", "0.0.0.0", "--allow-anonymous"]) == 0
    assert served.settings.allow_anonymous
    assert main(["serve", "--allow-anonymous", "--api-key", "sk-x"]) == 1
    assert "--allow-anonymous or the key" in capsys.readouterr().err


def test_busy_port_is_one_line_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(telechat.engine, "LLM", None)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    message = capsys.readouterr().err
    assert message == (
        f"error: Port {port} on 127.0.0.1 is in use. "
        "Stop the program that uses it, or choose another port with --port. "
        "See docs/troubleshooting.md#a-port-is-in-use.\n"
    )


def test_unknown_host(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(telechat.engine, "LLM", None)
    assert main(["serve", "--host", "nowhere.invalid"]) == 2
    assert "--host" in capsys.readouterr().err


def test_a_folder_without_a_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert main(["serve", str(tmp_path), "--port", str(port), "--log-level", "error"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and "config.json" in message
