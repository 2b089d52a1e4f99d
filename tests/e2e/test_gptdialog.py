"""The original routes of a real server process, asked by the two example clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.e2e.servers import API_KEY, RunningServer, free_port, running_server

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "生抽"
HEADERS = {"Authorization": f"Bearer {API_KEY}"}


def run_example(name: str, url: str, question: str = QUESTION) -> subprocess.CompletedProcess[str]:
    """An example client's output; proxies of whoever runs the test are not asked for this machine."""
    environment = {**os.environ, "TELECHAT_API_KEY": API_KEY, "NO_PROXY": "*", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(EXAMPLES / name), question, "--url", url]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120)


def test_both_example_clients_print_the_same_answer(server: RunningServer) -> None:
    whole = run_example("gptdialog_json.py", server.url)
    streamed = run_example("gptdialog_stream.py", server.url)
    assert (whole.returncode, streamed.returncode) == (0, 0), whole.stderr + streamed.stderr
    assert whole.stdout == streamed.stdout
    body = {"dialog": [{"role": "user", "content": QUESTION}], "do_sample": False}
    answer = httpx.post(
        f"{server.url}/telechat/gptDialog/v4", json=body, headers=HEADERS, trust_env=False, timeout=60
    )
    assert whole.stdout.splitlines() == (answer.json()["content"] + "\n").splitlines()


@pytest.mark.parametrize("name", ["gptdialog_json.py", "gptdialog_stream.py"])
def test_example_clients_report_errors(server: RunningServer, name: str) -> None:
    result = run_example(name, server.url, question="长" * 3000)
    assert result.returncode == 1
    assert result.stderr.strip() == "error 10305: 请求参数范围错误"


@pytest.mark.parametrize("name", ["gptdialog_json.py", "gptdialog_stream.py"])
def test_example_clients_say_why_there_is_no_answer(name: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    result = run_example(name, url)
    assert result.returncode == 1
    assert result.stderr.startswith(f"no answer from {url}: ") and "telechat serve" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["gptdialog_json.py", "gptdialog_stream.py"])
def test_example_clients_and_a_wrong_key(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("tests.e2e.test_gptdialog.API_KEY", "wrong")
    result = run_example(name, server.url)
    assert result.returncode == 1
    assert "401 The API key is not one of this service." in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gptdialog_json.py", "gptdialog_stream.py"])
def test_example_clients_and_the_demo_model(demo_server: RunningServer, name: str) -> None:
    result = run_example(name, demo_server.url, question="生抽与老抽的区别？")
    assert result.returncode == 0, result.stderr
    for word in ("颜色", "味道", "用途"):
        assert word in result.stdout


def test_streams_arrive_in_pieces(server: RunningServer) -> None:
    body = {"dialog": [{"role": "user", "content": QUESTION}], "max_length": 600}
    url = f"{server.url}/telechat/gptDialog/v2"
    with httpx.stream("POST", url, json=body, headers=HEADERS, trust_env=False, timeout=60) as answer:
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["transfer-encoding"] == "chunked"
        pieces = list(answer.iter_raw())
    assert len(pieces) > 5
    b"".join(pieces).decode("utf-8")


def test_a_busy_port_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "telechat", "serve", str(tmp_path / "no-model"), "--port", str(port)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use." in result.stderr
    assert "--port" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_sigterm_lets_answers_finish(small_model_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": True,
        "max_tokens": 300,
        "ignore_eos": True,
    }
    with running_server(small_model_folder, log, "--max-model-len", "2048") as running:
        url = f"{running.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, trust_env=False, timeout=120) as answer:
            lines = answer.iter_lines()
            next(lines)
            running.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert running.process.wait(timeout=30) == 0
    assert "Traceback" not in log.read_text()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_with_130(small_model_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_server(small_model_folder, log) as running:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=30) == 130
    assert "Traceback" not in log.read_text()


@pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")
def test_a_public_host_gets_a_key(
    small_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with running_server(small_model_folder, tmp_path / "log", "--host", "0.0.0.0") as running:
        key = (tmp_path / "telechat" / "api_key").read_text().strip()
        assert (tmp_path / "telechat" / "api_key").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "log").read_text().count(key) == 1
        with httpx.Client(base_url=running.url, trust_env=False) as client:
            assert client.get("/v1/models").status_code == 401
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    options = ("--host", "0.0.0.0", "--allow-anonymous")
    with running_server(small_model_folder, tmp_path / "log", *options) as running:
        assert httpx.get(f"{running.url}/v1/models", trust_env=False).status_code == 200
