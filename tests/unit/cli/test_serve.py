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
        "Stop the program that uses it, or choose another port with --port.\n"
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
