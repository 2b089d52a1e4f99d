"""The code in docs/api.md runs as it stands, and the fields and codes it names exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient
from tests.unit.serve.conftest import MakeClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.serve.openai.chat_fields import ChatRequest

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "api.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_python_blocks(
    client: TestClient,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine.scripts = {
        "上海今天天气怎么样？": (
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "上海"}}\n</tool_call>',
        ),
        '{"city": "上海", "weather": "晴", "temperature": 21}': ("上海今天晴，21度。",),
        "说一道家常菜": ('{"name": "番茄炒蛋", "minutes": 10}',),
    }
    make = openai.OpenAI

    def in_process(base_url: str, **fields: Any) -> openai.OpenAI:
        assert base_url == "http://127.0.0.1:8070/v1"
        return make(base_url="http://testserver/v1", http_client=client, max_retries=0, **fields)

    monkeypatch.setattr(openai, "OpenAI", in_process)
    names: dict[str, Any] = {"__name__": "docs_api"}
    for block in blocks("python"):
        exec(block, names)
    shown = capsys.readouterr().out
    for expected in ("15 tokens", "上海今天晴，21度。", "番茄炒蛋", "[None, -1.0", "你好, world", "2"):
        assert expected in shown


def test_the_command(client: TestClient) -> None:
    (command,) = blocks("bash")
    words = shlex.split(command)
    assert words[:2] == ["curl", "http://127.0.0.1:8070/tokenize"]
    answer = client.post("/tokenize", json=json.loads(words[words.index("-d") + 1]))
    assert answer.json()["token_strs"] == ["你", "好"]


def test_the_extra_fields_exist() -> None:
    (line,) = re.findall(r"Beside OpenAI's: (.*?)\. In OpenAI's", PAGE, re.DOTALL)
    named = set(re.findall(r"`(\w+)`", line))
    assert named and named <= set(ChatRequest.model_fields)


def test_the_routes_exist(make_client: MakeClient, tmp_path: Path) -> None:
    # Some routes exist only where adapters may be loaded.
    paths = make_client(lora_dir=tmp_path).get("/openapi.json").json()["paths"]
    named = re.findall(r"`(GET|POST) (/[^`]+)`", PAGE)
    assert len(named) > 5
    for method, path in named:
        assert method.lower() in paths[path.replace("{id}", "{model_id}")]
