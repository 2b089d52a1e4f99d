"""`telechat serve --mindie-config`: the file's values arrive, and typed options win over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.test_serve import Recorder

from telechat.cli.main import main
from telechat.serve.mindie.settings import MindieSettings
from telechat.serve.settings import ServeSettings

CONFIG: dict[str, Any] = {
    "modelWeightPath": "some/model",
    "modelName": "telechat",
    "npuDeviceIds": [[0, 1]],
    "worldSize": 2,
    "maxSeqLen": 8192,
    "maxInputTokenLen": 6144,
    "npuMemSize": 8,
    "cacheBlockSize": 64,
    "maxPrefillTokens": 7000,
    "maxBatchSize": 30,
    "maxIterTimes": 99,
    "maxLinkNum": 50,
    "e2eTimeout": 60,
    "managementIpAddress": "127.0.0.1",
    "httpsEnabled": False,
}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.delenv("MIES_CONTAINER_IP", raising=False)
    monkeypatch.delenv("MODEL_PATH", raising=False)
    return Recorder(monkeypatch)


def config_file(folder: Path, **changes: Any) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
    return str(path)


def test_the_described_service_is_started(served: Recorder, tmp_path: Path) -> None:
    assert main(["serve", "--mindie-config", config_file(tmp_path), "--access-log", "none"]) == 0
    assert served.settings == ServeSettings(
        port=1025,
        served_model_name="telechat",
        max_prompt_tokens=6144,
        max_pending_requests=50,
        request_seconds=60,
        also_listen=(("127.0.0.1", 1026),),
        mindie=MindieSettings(
            max_iter_times=99,
            max_prefill_tokens=7000,
            max_batch_size=30,
            management_port=1026,
            announces=True,
        ),
    )
    expected = {
        "model": "some/model",
        "tp": 2,
        "max_model_len": 8192,
        "cache_memory": 8 << 30,
        "block_size": 64,
        "max_batch_tokens": 7000,
        "max_batch_size": 30,
    }
    assert {name: served.loaded[name] for name in expected} == expected


def test_typed_options_win(served: Recorder, tmp_path: Path) -> None:
    words = "--port 9000 --tp 1 --max-model-len 99 --num-blocks 40 --max-prompt-tokens 9 --replicas 1"
    more = "--host 127.0.0.5 --max-batch-tokens 64 --served-model-name mine --request-timeout 5"
    path = config_file(tmp_path)
    assert main(["serve", "demo", "--mindie-config", path, *words.split(), *more.split()]) == 0
    assert (served.settings.port, served.settings.host) == (9000, "127.0.0.5")
    assert (served.settings.max_prompt_tokens, served.settings.request_seconds) == (9, 5)
    assert served.settings.served_model_name == "mine"
    assert (served.loaded["model"], served.loaded["tp"], served.loaded["max_model_len"]) == ("demo", 1, 99)
    # Two sizes of the cache would contradict one another.
    assert served.loaded["num_blocks"] == 40 and "cache_memory" not in served.loaded


def test_https_and_instances(served: Recorder, tmp_path: Path) -> None:
    for name in ("server.pem", "server.key"):
        (tmp_path / name).touch()
    path = config_file(
        tmp_path,
        httpsEnabled=True,
        tlsCert="server.pem",
        tlsPk="server.key",
        managementPort=1025,
        metricsPort=1027,
        npuDeviceIds=[[0, 1], [2, 3]],
        modelInstanceNumber=2,
    )
    assert main(["serve", "--mindie-config", path, "--replicas", "1"]) == 0
    assert served.settings.tls_cert == tmp_path / "server.pem"
    assert served.settings.tls_key == tmp_path / "server.key"
    # One port for requests and management; metrics have one of their own.
    assert served.settings.also_listen == (("127.0.0.1", 1027),)
    assert served.settings.mindie.management_port == 1025


def test_a_model_must_be_named(served: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--mindie-config", config_file(tmp_path, modelWeightPath=None)]) == 1
    assert "no modelWeightPath" in capsys.readouterr().err


def test_wrong_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--mindie-config", str(tmp_path / "missing.json")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
