"""A MindIE configuration starts the service that it describes, and MindIE's requests get their answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.servers import START_SECONDS, free_port

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Daemon:
    """A service started from a configuration."""

    url: str
    management_url: str
    process: subprocess.Popen[bytes]
    output: Path
    errors: Path


@pytest.fixture(scope="module")
def daemon(small_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("mindie")
    port, management_port = free_port(), free_port()
    config: dict[str, Any] = {
        "Version": "1.0.0",
        "ServerConfig": {
            "ipAddress": "127.0.0.1",
            "port": port,
            "managementIpAddress": "127.0.0.1",
            "managementPort": management_port,
            "httpsEnabled": False,
        },
        "BackendConfig": {
            "npuDeviceIds": [[0]],
            "colour": "red",
            "ModelDeployConfig": {
                "maxSeqLen": 256,
                "maxInputTokenLen": 100,
                "ModelConfig": [
                    {
                        "modelName": "telechat",
                        "modelWeightPath": str(small_model_folder),
                        "worldSize": 1,
                        "npuMemSize": 1,
                    }
                ],
            },
            "ScheduleConfig": {"cacheBlockSize": 128, "maxPrefillTokens": 512, "maxIterTimes": 40},
        },
    }
    path = folder / "conf" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "telechat", "serve", "--mindie-config", str(path), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("TELECHAT_API_KEY", "MODEL_PATH", "MIES_CONTAINER_IP"):
        environment.pop(name, None)
    output, errors = folder / "mindie.log", folder / "errors"
    with output.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Daemon start success!" not in output.read_text():
            assert process.poll() is None and time.monotonic() < deadline, errors.read_text()
            time.sleep(0.1)
        yield Daemon(
            f"http://127.0.0.1:{port}", f"http://127.0.0.1:{management_port}", process, output, errors
        )
    finally:
        process.terminate()
        process.wait(timeout=60)


def post(daemon: Daemon, route: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(daemon.url + route, json=body, timeout=120, trust_env=False)


def test_it_says_what_it_does(daemon: Daemon) -> None:
    log = daemon.errors.read_text()
    assert "Daemon start success!" in log
    assert "unknown keys, not used: BackendConfig.colour" in log
    # 1 GB, as asked, in blocks of 128 tokens.
    assert "blocks of 128 tokens" in log and "1.00 GiB" in log


def test_lengths_and_name_are_those_of_the_file(daemon: Daemon) -> None:
    info = httpx.get(daemon.url + "/info", trust_env=False).json()
    assert (info["max_input_length"], info["models"][0]["max_total_tokens"]) == (100, 256)
    assert (info["models"][0]["model_id"], info["max_batch_total_tokens"]) == ("telechat", 512)
    refused = post(daemon, "/generate", {"inputs": "长" * 150})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "validation")
    many = {"inputs": "生抽", "parameters": {"max_new_tokens": 5000, "details": True}}
    assert post(daemon, "/generate", many).json()["details"]["generated_tokens"] <= 40


def test_the_forms_agree(daemon: Daemon, small_model_folder: Path) -> None:
    """One greedy continuation, asked for in every form, is the model's own."""
    from telechat.engine import LLM, SamplingParams

    prompt = "<_start><_user>生抽<_bot>"
    llm = LLM(small_model_folder, device="cpu")
    ids = llm.tokenizer.encode(prompt, parse_special=True)
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, skip_special_tokens=False)
    expected = llm.generate(ids, params)[0].outputs[0]

    parameters = {"max_new_tokens": 12, "details": True}
    whole = post(daemon, "/generate", {"inputs": prompt, "parameters": parameters}).json()
    ids_there = [token["id"] for token in whole["details"]["tokens"]]
    assert ids_there == expected.token_ids[: len(ids_there)] and ids_there
    text = whole["generated_text"]
    triton = {"text_input": prompt, "parameters": parameters}
    assert post(daemon, "/v2/models/telechat/generate", triton).json()["text_output"] == text
    native = {"inputs": prompt, "parameters": parameters}
    assert post(daemon, "/infer", native).json()["generated_text"] == text
    tokens = {"input_id": ids, "parameters": parameters}
    assert post(daemon, "/infer_token", tokens).json()["generated_text"] == text
    streamed = post(daemon, "/generate_stream", {"inputs": prompt, "parameters": parameters}).text
    last = json.loads(streamed.rstrip("\n").rpartition("\n\n")[2].removeprefix("data: "))
    assert last["generated_text"] == text
    vllm = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "skip_special_tokens": False}
    answer = post(daemon, "/generate", vllm).json()["text"][0]
    assert answer.startswith(prompt) and text.startswith(answer[len(prompt) :])


def test_both_ports_and_the_end(daemon: Daemon) -> None:
    for url in (daemon.url, daemon.management_url):
        assert httpx.get(url + "/v2/health/ready", trust_env=False).status_code == 200
    assert httpx.get(daemon.url + "/stopService", trust_env=False).status_code == 403
    assert httpx.get(daemon.management_url + "/stopService", trust_env=False).status_code == 200
    assert daemon.process.wait(timeout=60) == 0
