"""`telechat deploy`: where settings come from, what the children get, what is refused before they start."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from telechat.cli import deploy
from telechat.cli.main import main
from telechat.cli.parser import CommandParser
from telechat.cli.processes import Group, url_of
from telechat.errors import TelechatError

ROOT = Path(__file__).resolve().parents[3]


def parse(*words: str) -> argparse.Namespace:
    parser = CommandParser("telechat deploy", summary="x", examples=[])
    deploy.add_arguments(parser)
    return parser.parse(words)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "models" / "7B").mkdir(parents=True)
    path = tmp_path / "conf" / "deploy_config.yaml"
    path.parent.mkdir()
    path.write_text(
        "model_path: '../models/7B'\napi_host: '127.0.0.2'\napi_port: 9070\nweb_host: '127.0.0.3'\n"
        "web_port: 9501\ngpu_devices: '3'\n",
        encoding="utf-8",
    )
    return path


def test_defaults() -> None:
    settings = deploy.resolve_settings(parse(), {})
    assert settings == deploy.DeploySettings()
    assert (settings.model_path, settings.api_host, settings.api_port, settings.web_port) == (
        "demo",
        "127.0.0.1",
        8070,
        8501,
    )


def test_file_beats_default(config: Path) -> None:
    settings = deploy.resolve_settings(parse("--config", str(config)), {})
    assert Path(settings.model_path) == config.parents[1] / "models" / "7B"
    assert (settings.api_host, settings.api_port) == ("127.0.0.2", 9070)
    assert (settings.web_host, settings.web_port, settings.gpu_devices) == ("127.0.0.3", 9501, "3")


def test_environment_beats_file(config: Path) -> None:
    environment = {"MODEL_PATH": "../models/12B", "CUDA_VISIBLE_DEVICES": "0"}
    settings = deploy.resolve_settings(parse("--config", str(config)), environment)
    assert (settings.model_path, settings.gpu_devices) == ("../models/12B", "0")


@pytest.mark.parametrize("model_flag", ["--model-path", "--model", "--model_path"])
def test_flag_beats_all(config: Path, model_flag: str) -> None:
    environment = {"MODEL_PATH": "../models/12B", "CUDA_VISIBLE_DEVICES": "0"}
    words = "--api-port 1 --web-port 2 --api-host 127.0.0.8 --web-host 127.0.0.9 --gpu 0,1"
    args = parse("--config", str(config), model_flag, "mine", *shlex.split(words))
    settings = deploy.resolve_settings(args, environment)
    assert settings == deploy.DeploySettings(
        model_path="mine",
        api_host="127.0.0.8",
        api_port=1,
        web_host="127.0.0.9",
        web_port=2,
        gpu_devices="0,1",
    )


@pytest.mark.parametrize("name", ["demo", "TeleAI/TeleChat2-7B", "/models/7B"])
def test_names_and_absolute_folders_stay_as_they_are(config: Path, name: str) -> None:
    config.write_text(f"model_path: {name}\n", encoding="utf-8")
    (config.parent / "demo").mkdir()
    assert deploy.resolve_settings(parse("--config", str(config)), {}).model_path == name


def test_shipped_file_has_all_six_keys_with_comments() -> None:
    import yaml

    text = (ROOT / "deploy_config.yaml").read_text(encoding="utf-8")
    keys = list(yaml.safe_load(text))
    assert keys == ["model_path", "api_host", "api_port", "web_host", "web_port", "gpu_devices"]
    for key in keys:
        before = text[: text.index(f"\n{key}:")].splitlines()[-1]
        assert before.startswith("#"), f"{key} has no comment"
    settings = deploy.resolve_settings(parse("--config", str(ROOT / "deploy_config.yaml")), {})
    assert settings.model_path == "demo" and settings.api_host == settings.web_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("api_prot: 1\n", ["api_prot", "api_port"]),
        ("api_port: eighty\n", ["api_port", "'eighty'"]),
        ("api_port: 70000\n", ["70000", "65535"]),
        ("api_port: 8501\n", ["both 8501", "--web-port"]),
        ("gpu_devices: cuda\n", ["gpu_devices", "'cuda'"]),
        ("model_path: ''\n", ["model_path is empty"]),
    ],
)
def test_mistakes_in_the_file(
    tmp_path: Path, text: str, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    assert main(["deploy", "--config", str(path)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in parts:
        assert part in message


def test_wrong_gpu_flag_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "--gpu", "cuda:0"]) == 2
    assert "'cuda:0'" in capsys.readouterr().err


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("flag", ["--api-port", "--web-port"])
def test_busy_port_names_port_and_flag(flag: str, busy_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", flag, str(busy_port), *free_other(flag)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(busy_port) in message and flag in message


def free_other(flag: str) -> list[str]:
    other = "--web-port" if flag == "--api-port" else "--api-port"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return [other, str(probe.getsockname()[1])]


def test_unknown_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "--api-host", "nowhere.invalid"]) == 2
    assert "--api-host" in capsys.readouterr().err


def test_children_share_key_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = deploy.DeploySettings(gpu_devices="0,1")
    args = parse("--api-key", "sk-mine")
    api, page = deploy.child_environments(settings, args)
    assert api["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert api["TELECHAT_API_KEY"] == page["TELECHAT_API_KEY"] == "sk-mine"
    assert "sk-mine" not in " ".join(deploy.api_command(settings, args))


def test_devices_by_flag_environment_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the API process sees; the variable takes more than numbers, and `--gpu ''` lifts it."""

    def seen(variable: str | None, *words: str) -> str | None:
        if variable is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
        args = parse("--config", str(config), *words)
        api, _ = deploy.child_environments(deploy.resolve_settings(args, os.environ), args)
        return api.get("CUDA_VISIBLE_DEVICES")

    assert seen(None) == "3"
    assert seen("GPU-8932f937,MIG-1") == "GPU-8932f937,MIG-1"
    assert seen("") == ""
    assert seen("1", "--gpu", "2") == "2"
    assert seen("1", "--gpu", "") is None


def test_log_level_reaches_the_api() -> None:
    settings = deploy.DeploySettings()
    for words, level in (((), "info"), (("--log-level", "error"), "error")):
        assert deploy.api_command(settings, parse(*words))[-2:] == ["--log-level", level]


def test_public_host_gets_a_generated_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    settings = deploy.DeploySettings(api_host="0.0.0.0")
    api, page = deploy.child_environments(settings, parse())
    key = api["TELECHAT_API_KEY"]
    assert key and page["TELECHAT_API_KEY"] == key
    assert capsys.readouterr().err.count(key) == 1
    again, _ = deploy.child_environments(settings, parse())
    assert again["TELECHAT_API_KEY"] == key and key not in capsys.readouterr().err
    api, _ = deploy.child_environments(settings, parse("--allow-anonymous"))
    assert "TELECHAT_API_KEY" not in api
    assert "--allow-anonymous" in deploy.api_command(settings, parse("--allow-anonymous"))


def test_a_public_page_needs_the_key_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    settings = deploy.DeploySettings(web_host="0.0.0.0")
    api, page = deploy.child_environments(settings, parse())
    assert api["TELECHAT_API_KEY"] == page["TELECHAT_API_KEY"]
    shown = capsys.readouterr().err
    assert page["TELECHAT_API_KEY"] in shown and "password" in shown
    api, page = deploy.child_environments(settings, parse("--allow-anonymous"))
    assert "TELECHAT_API_KEY" not in api and "TELECHAT_API_KEY" not in page
    assert "whoever reaches it" in capsys.readouterr().err


def test_adapters_reach_the_api_and_a_name_given_twice_is_refused() -> None:
    settings = deploy.DeploySettings()
    command = deploy.api_command(settings, parse("--lora", "poet=a/b", "--lora", "runs/lawyer"))
    place = command.index("--lora")
    assert command[place : place + 4] == ["--lora", "poet=a/b", "--lora", "lawyer=runs/lawyer"]
    assert "--lora" not in deploy.api_command(settings, parse())
    with pytest.raises(TelechatError, match="names 'poet' twice"):
        deploy.api_command(settings, parse("--lora", "poet=a", "--lora", "poet=b"))


def test_feedback_folder_by_flag_and_file_reaches_the_page(config: Path) -> None:
    assert "--feedback-folder" not in deploy.page_command(deploy.DeploySettings(), "http://127.0.0.1:1")
    config.write_text("feedback_folder: ../votes\n", encoding="utf-8")
    from_file = deploy.resolve_settings(parse("--config", str(config)), {})
    assert Path(from_file.feedback_folder) == config.parents[1] / "votes"
    from_flag = deploy.resolve_settings(parse("--config", str(config), "--feedback-folder", "mine"), {})
    command = deploy.page_command(from_flag, "http://127.0.0.1:1")
    assert command[-2:] == ["--feedback-folder", "mine"]


def test_a_feedback_folder_that_cannot_be_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["deploy", "--feedback-folder", str(tmp_path / "file" / "votes")]) == 1
    assert "Votes cannot be kept" in capsys.readouterr().err


def test_page_process_keeps_votes_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import uvicorn
    from starlette.testclient import TestClient

    from telechat.cli import page_process

    apps = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: apps.append(app))
    words = ["page", "--api-url", "http://127.0.0.1:9", "--host", "127.0.0.1", "--port", "1"]
    for folder, offered in ((None, False), (tmp_path / "votes", True)):
        given = ["--feedback-folder", str(folder)] if folder else []
        monkeypatch.setattr(sys, "argv", [*words, *given])
        assert page_process.main() == 0
        with TestClient(apps[-1], base_url="http://127.0.0.1") as client:
            assert client.get("/about").json() == {"feedback": offered}
    assert (tmp_path / "votes").is_dir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [*words, "--feedback-folder", str(tmp_path / "file" / "x")])
    assert page_process.main() == 1
    assert "Votes cannot be kept" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "asks"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_page_process_asks_for_the_key_on_a_public_address(
    host: str, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import uvicorn
    from starlette.testclient import TestClient

    from telechat.cli import page_process

    apps = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: apps.append((app, options["host"])))
    monkeypatch.setenv("TELECHAT_API_KEY", "sk-mine")
    words = ["page", "--api-url", "http://127.0.0.1:9", "--host", host, "--port", "1"]
    monkeypatch.setattr(sys, "argv", words)
    assert page_process.main() == 0
    ((app, bound),) = apps
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert bound == host
        assert client.get("/").status_code == (401 if asks else 200)
        assert client.get("/", auth=("me", "sk-mine")).status_code == 200


def test_loopback_needs_no_key() -> None:
    api, _ = deploy.child_environments(deploy.DeploySettings(), parse())
    assert "TELECHAT_API_KEY" not in api


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1")],
)
def test_url_of(host: str, url: str) -> None:
    assert url_of(host, 1) == url


def test_one_that_ends_stops_the_rest() -> None:
    group = Group()
    group.start("The first", [sys.executable, "-c", "import time; time.sleep(60)"], {})
    group.start("The second", [sys.executable, "-c", "raise SystemExit(3)"], {})
    with pytest.raises(TelechatError, match="The second ended with exit code 3"):
        group.wait_until(lambda: False)
    group.stop()
    # The first was ended; left alone it would have slept on and ended well.
    assert group._children["The first"].poll() not in (None, 0)
