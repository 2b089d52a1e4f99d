"""MindIE's conf/config.json: nested and flat, every key that is obeyed, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from telechat.errors import ConfigError
from telechat.serve.mindie.config_file import MindieConfig, read_mindie_config

# The keys of the original's page, which lists them without groups.
FLAT: dict[str, Any] = {
    "modelWeightPath": "weights",
    "npuDeviceIds": [[0]],
    "worldSize": 1,
    "backendType": "ms",
    "maxSeqLen": 8192,
    "maxInputTokenLen": 6144,
    "npuMemSize": 8,
    "httpsEnabled": False,
}
NESTED: dict[str, Any] = {
    "Version": "1.0.0",
    "LogConfig": {"logLevel": "Info", "logFileSize": 20},
    "ServerConfig": {
        "ipAddress": "127.0.0.3",
        "managementIpAddress": "127.0.0.4",
        "port": 2025,
        "managementPort": 2026,
        "metricsPort": 2027,
        "allowAllZeroIpListening": False,
        "maxLinkNum": 77,
        "httpsEnabled": False,
        "fullTextEnabled": False,
        "interCommTLSEnabled": True,
        "openAiSupport": "vllm",
        "e2eTimeout": 60,
    },
    "BackendConfig": {
        "backendName": "mindieservice_llm_engine",
        "modelInstanceNumber": 2,
        "npuDeviceIds": [[0, 1], [2, 3]],
        "ModelDeployConfig": {
            "maxSeqLen": 2560,
            "maxInputTokenLen": 2048,
            "truncation": False,
            "ModelConfig": [
                {
                    "modelInstanceType": "Standard",
                    "modelName": "telechat",
                    "modelWeightPath": "/data/telechat",
                    "worldSize": 2,
                    "cpuMemSize": 5,
                    "npuMemSize": -1,
                    "backendType": "ms",
                    "trustRemoteCode": False,
                }
            ],
        },
        "ScheduleConfig": {
            "templateType": "Standard",
            "cacheBlockSize": 128,
            "maxPrefillTokens": 8192,
            "maxBatchSize": 20,
            "maxIterTimes": 256,
        },
    },
}


def read(folder: Path, content: Any, environment: dict[str, str] | None = None) -> MindieConfig:
    path = folder / "conf" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_mindie_config(path, environment or {})


def test_the_flat_form_with_the_defaults_of_the_daemon(tmp_path: Path) -> None:
    config = read(tmp_path, FLAT)
    assert config == MindieConfig(
        model=Path("weights"),
        host="127.0.0.1",
        port=1025,
        management_host="127.0.0.2",
        management_port=1026,
        devices="0",
        tp=1,
        max_model_len=8192,
        max_prompt_tokens=6144,
        cache_bytes=8 << 30,
        max_iter_times=512,
        without_effect=("backendType",),
    )


def test_the_nested_form(tmp_path: Path) -> None:
    config = read(tmp_path, NESTED)
    assert (config.host, config.port, config.max_pending_requests) == ("127.0.0.3", 2025, 77)
    assert (config.management_host, config.management_port, config.metrics_port) == ("127.0.0.4", 2026, 2027)
    assert (config.model, config.served_model_name) == (Path("/data/telechat"), "telechat")
    assert (config.devices, config.tp, config.replicas) == ("0,1,2,3", 2, 2)
    assert (config.max_model_len, config.max_prompt_tokens, config.cache_bytes) == (2560, 2048, None)
    assert (config.block_size, config.max_batch_tokens, config.max_batch_size) == (128, 8192, 20)
    assert (config.max_iter_times, config.request_seconds) == (256, 60)
    assert config.unknown == ()
    assert "ServerConfig.openAiSupport" in config.without_effect


def test_older_groups(tmp_path: Path) -> None:
    old = {
        "OtherParam": {"ServeParam": {"ipAddress": "127.0.0.1", "port": 1030}},
        "WorkFlowParam": {"TemplateParam": {"templateType": "Standard"}},
        "ModelDeployParam": {
            "maxSeqLen": 99,
            "npuDeviceIds": [[3]],
            "ModelParam": [{"modelWeightPath": "/w"}],
        },
    }
    config = read(tmp_path, old)
    assert (config.port, config.max_model_len, config.devices, config.tp) == (1030, 99, "3", 1)
    assert config.model == Path("/w")


def test_unknown_keys_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {**FLAT, "prot": 1, "ServerConfig": {"colour": "red"}, "truncation": True}
    with caplog.at_level(logging.INFO, logger="telechat"):
        config = read(tmp_path, content)
    assert config.unknown == ("prot (did you mean port?)", "ServerConfig.colour")
    assert "ServerConfig.colour" in caplog.text
    assert "without effect here: backendType, truncation" in caplog.text
    assert "truncation is true, which this service does not have" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": "1025"}, 'port is "1025"; it must be a whole number'),
        ({"port": 70000}, "port is 70000; it must be 1 to 65535"),
        ({"httpsEnabled": 1}, "httpsEnabled is 1; it must be true or false"),
        ({"maxSeqLen": True}, "maxSeqLen is true; it must be a whole number"),
        ({"npuMemSize": 0}, "npuMemSize is 0 GB"),
        ({"npuDeviceIds": [[0, 0]], "worldSize": 2}, r"npuDeviceIds is \[\[0, 0\]\]"),
        ({"npuDeviceIds": [[0, 1]]}, "worldSize is 1, but npuDeviceIds has an instance of 2"),
        ({"modelInstanceNumber": 2}, "modelInstanceNumber is 2, but npuDeviceIds has 1 lists"),
        ({"maxPrefillTokens": 6143}, "maxPrefillTokens is 6143, less than maxInputTokenLen, 6144"),
        ({"maxInputTokenLen": 8193}, "maxInputTokenLen is 8193, more than maxSeqLen"),
        ({"ServerConfig": {"maxSeqLen": 5}}, "maxSeqLen stands twice with different values"),
        ({"ModelConfig": [{}, {}]}, "ModelConfig has 2 entries; one service serves one model"),
        ({"ipAddress": "0.0.0.0"}, "allowAllZeroIpListening is not true"),
        ({"httpsEnabled": True}, "httpsEnabled is true, but tlsCert is missing"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, {**FLAT, **changes})


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_files_that_are_no_configuration(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError):
        read(tmp_path, content)
    with pytest.raises(ConfigError, match="No such file"):
        read_mindie_config(tmp_path / "missing.json", {})


def test_the_address_of_the_container_wins(tmp_path: Path) -> None:
    assert read(tmp_path, FLAT, {"MIES_CONTAINER_IP": "10.0.0.1"}).host == "10.0.0.1"
    config = read(tmp_path, {**FLAT, "ipAddress": "0.0.0.0", "allowAllZeroIpListening": True})
    assert config.host == "0.0.0.0"


def test_one_port_for_both(tmp_path: Path) -> None:
    assert read(tmp_path, {**FLAT, "port": 7, "managementPort": 7}).management_port is None


def test_files_are_found_from_the_folder_that_holds_conf(tmp_path: Path) -> None:
    (tmp_path / "security").mkdir()
    for name in ("server.pem", "server.key"):
        (tmp_path / "security" / name).touch()
    (tmp_path / "weights").mkdir()
    tls = {"httpsEnabled": True, "tlsCertPath": "security/", "tlsCert": "server.pem"}
    config = read(tmp_path, {**FLAT, **tls, "tlsPkPath": "security", "tlsPk": "server.key"})
    assert config.tls_cert == tmp_path / "security" / "server.pem"
    assert config.tls_key == tmp_path / "security" / "server.key"
    assert config.model == tmp_path / "weights"


def test_the_example_of_the_page(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "mindie.md").read_text(encoding="utf-8")
    config = read(tmp_path, page.split("```json\n")[1].split("```")[0])
    assert (config.model, config.devices, config.tp) == (Path("models/TeleChat2-7B"), "0", 1)
    assert (config.max_model_len, config.max_prompt_tokens, config.cache_bytes) == (8192, 6144, 8 << 30)
