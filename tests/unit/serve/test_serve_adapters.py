"""Adapters by `model` name: listed, chosen on every route, loaded and unloaded by those who may."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from tests.unit.checkpoint.adapters import ALL_LAYERS, random_adapter
from tests.unit.serve.conftest import MakeClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.checkpoint import AdapterConfig, read_config, write_adapter
from telechat.engine import LLM, AsyncEngine, QueueFullError
from telechat.errors import CheckpointError, ConfigError, RequestError
from telechat.serve.app import create_app
from telechat.serve.replicas import ReplicaSet, piece_names
from telechat.serve.settings import ServeSettings

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
HI = [{"role": "user", "content": "hi"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/embeddings": {"input": "hi"},
}


@pytest.fixture
def adapters(engine: FakeEngine) -> FakeEngine:
    engine.folders = {"poet": "a", "lawyer/v2": "b"}
    return engine


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ["poet", "lawyer/v2"])
def test_the_model_name_chooses_the_adapter(
    client: TestClient, adapters: FakeEngine, route: str, name: str
) -> None:
    answer = client.post(route, json={**ROUTES[route], "model": name})
    assert answer.status_code == 200 and adapters.adapter == name
    assert answer.json()["model"] == name
    for fields in ({}, {"model": "fake"}):
        answer = client.post(route, json={**ROUTES[route], **fields})
        assert adapters.adapter is None and answer.json()["model"] == "fake"
    refused = client.post(route, json={**ROUTES[route], "model": "novelist"})
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"
    assert "'fake', 'poet', 'lawyer/v2'" in refused.json()["error"]["message"]


def test_streams_carry_the_name_of_the_adapter(client: TestClient, adapters: FakeEngine) -> None:
    for route in ("/v1/chat/completions", "/v1/completions"):
        body = {**ROUTES[route], "model": "poet", "stream": True}
        lines = [line[6:] for line in client.post(route, json=body).text.splitlines() if line]
        assert {json.loads(line)["model"] for line in lines if line != "[DONE]"} == {"poet"}


def test_models_list_adapters_with_their_parent(client: TestClient, adapters: FakeEngine) -> None:
    cards = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["fake", "poet", "lawyer/v2"]
    assert "parent" not in cards[0]
    assert [card["parent"] for card in cards[1:]] == ["fake", "fake"]
    assert client.get("/v1/models/lawyer/v2").json() == cards[2]
    assert client.get("/v1/models/novelist").status_code == 404


def test_tokenize_takes_an_adapters_name_and_mindie_only_the_model(
    client: TestClient, adapters: FakeEngine
) -> None:
    assert client.post("/tokenize", json={"prompt": "hi", "model": "poet"}).status_code == 200
    assert client.post("/v2/models/poet/generate", json={"text_input": "hi"}).status_code == 404
    client.post("/telechat/gptDialog/v2", json={"dialog": [{"role": "user", "content": "hi"}]})
    assert adapters.adapter is None


def test_adapters_are_counted_until_they_go(
    make_client: MakeClient, adapters: FakeEngine, tmp_path: Path
) -> None:
    client = make_client(lora_dir=tmp_path)
    client.post("/v1/completions", json={"prompt": ["a", "b"], "model": "poet"})
    client.post("/v1/embeddings", json={"input": "hi", "model": "poet"})
    assert 'telechat_adapter_prompts_total{adapter="poet"} 3.0' in client.get("/metrics").text
    assert client.post(UNLOAD, json={"lora_name": "poet"}).status_code == 200
    assert 'adapter="poet"' not in client.get("/metrics").text
    assert client.post(UNLOAD, json={"lora_name": "lawyer/v2"}).status_code == 200  # never asked


def test_the_access_log_names_the_adapter(adapters: FakeEngine, tmp_path: Path) -> None:
    from telechat.serve.access_log import AccessLog
    from telechat.serve.app import create_app

    log = AccessLog(tmp_path / "log")
    client = TestClient(create_app(adapters, ServeSettings(), access_log=log))
    client.post("/v1/chat/completions", json={"messages": HI, "model": "poet"})
    client.post("/v1/chat/completions", json={"messages": HI})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line.get("adapter") for line in lines] == ["poet", None]


def test_without_a_folder_for_adapters_nobody_loads(client: TestClient) -> None:
    for path in (LOAD, UNLOAD):
        assert client.post(path, json={"lora_name": "a", "lora_path": "b"}).status_code == 404
    assert LOAD not in client.get("/openapi.json").json()["paths"]


def test_load_and_unload(make_client: MakeClient, engine: FakeEngine, tmp_path: Path) -> None:
    client = make_client(lora_dir=tmp_path)
    assert LOAD in client.get("/openapi.json").json()["paths"]
    answer = client.post(LOAD, json={"lora_name": "poet", "lora_path": "runs/poet"})
    assert answer.text == "Success: LoRA adapter 'poet' added successfully."
    assert engine.folders == {"poet": str(tmp_path / "runs" / "poet")}
    absolute = {"lora_name": "other", "lora_path": str(tmp_path / "x")}
    assert client.post(LOAD, json=absolute).status_code == 200
    answer = client.post(UNLOAD, json={"lora_name": "poet", "lora_int_id": 3})
    assert answer.text == "Success: LoRA adapter 'poet' removed successfully."
    gone = client.post(UNLOAD, json={"lora_name": "poet"})
    assert gone.status_code == 404 and gone.json()["error"]["param"] == "lora_name"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "lora_name"),
        ({"lora_name": "", "lora_path": "a"}, "lora_name"),
        ({"lora_name": 3, "lora_path": "a"}, "lora_name"),
        ({"lora_name": "fake", "lora_path": "a"}, "lora_name"),
        ({"lora_name": "a"}, "lora_path"),
        ({"lora_name": "a", "lora_path": "../a"}, "lora_path"),
        ({"lora_name": "a", "lora_path": "/etc"}, "lora_path"),
        ({"lora_name": "a", "lora_path": "inside/link"}, "lora_path"),
        ({"lora_name": "a", "lora_path": "a\x00b"}, "lora_path"),
        ({"lora_name": "a", "lora_path": "x" * 5000}, "lora_path"),
    ],
)
def test_bad_bodies_and_paths_outside_are_refused(
    make_client: MakeClient, engine: FakeEngine, tmp_path: Path, body: dict[str, Any], param: str
) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to("/usr")
    answer = make_client(lora_dir=tmp_path).post(LOAD, json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert not engine.folders


@pytest.mark.parametrize("error", [CheckpointError("bad"), ConfigError("bad")])
def test_what_is_wrong_with_an_adapter_is_the_requests_fault(
    make_client: MakeClient, engine: FakeEngine, tmp_path: Path, error: Exception
) -> None:
    engine.refusal = type(error)(f"{tmp_path}/a has no adapter_config.json.")
    answer = make_client(lora_dir=tmp_path).post(LOAD, json={"lora_name": "a", "lora_path": "a"})
    assert answer.status_code == 400
    # Nothing of where the folder lies.
    assert answer.json()["error"]["message"] == "a has no adapter_config.json."
    engine.refusal = QueueFullError("full")
    answer = make_client(lora_dir=tmp_path).post(LOAD, json={"lora_name": "a", "lora_path": "a"})
    assert answer.status_code == 429


def test_only_some_keys_may_change_adapters(
    make_client: MakeClient, engine: FakeEngine, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys:\n  user:\n    key: sk-user\n  boss:\n    key: sk-boss\n    load_adapters: true\n")
    keys.chmod(0o600)
    client = make_client(lora_dir=tmp_path, api_keys=("sk-plain",), key_file=keys)
    for number, (key, status) in enumerate((("user", 403), ("boss", 200), ("plain", 200), ("none", 401))):
        body = {"lora_name": f"a{number}", "lora_path": "a"}
        headers = {"Authorization": f"Bearer sk-{key}"}
        answer = client.post(LOAD, json=body, headers=headers)
        assert answer.status_code == status, key
        if status == 403:
            assert answer.json()["error"]["type"] == "permission_error"
            assert client.post(UNLOAD, json={"lora_name": "a1"}, headers=headers).status_code == 403
    assert list(engine.folders) == ["a1", "a2"]


def test_a_public_host_without_keys_lets_nobody_load(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="everybody is let in"):
        ServeSettings(host="0.0.0.0", allow_anonymous=True, lora_dir=tmp_path)
    ServeSettings(allow_anonymous=True, lora_dir=tmp_path)


def test_all_replicas_have_an_adapter_or_none(tmp_path: Path) -> None:
    first, second = FakeEngine(), FakeEngine()
    both = ReplicaSet([first, second])  # type: ignore[list-item]

    async def scenario() -> None:
        await both.load_adapter("a", tmp_path)
        assert first.adapters == second.adapters == ("a",) and both.adapters == ["a"]
        second.refusal = ConfigError("no room")
        with pytest.raises(ConfigError, match="no room"):
            await both.load_adapter("b", tmp_path)
        assert first.adapters == second.adapters == ("a",)
        del second.folders["a"]
        assert both.adapters == []
        await both.unload_adapter("a")
        assert first.adapters == ()
        with pytest.raises(RequestError, match="no adapter"):
            await both.unload_adapter("a")

    asyncio.run(scenario())


def test_pieces_of_prompts_differ_by_adapter() -> None:
    prompt = list(range(200))
    assert len({tuple(piece_names(prompt, name)) for name in (None, "a", "b")}) == 3


def test_a_real_engine_survives_every_bad_folder(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Refused with the reason, each time; then a good one answers as `LLM` does with it."""
    config = read_config(tiny_model_folder)
    plain = AdapterConfig(r=4, lora_alpha=8, target_modules=ALL_LAYERS)
    good = random_adapter(config, settings=plain)
    wide = random_adapter(config, settings=replace(plain, r=65))
    other = config.replace(ffn_hidden_size=64)
    for name, adapter, shape in (
        ("good", good, config),
        ("wide", wide, config),
        ("other", random_adapter(other, settings=plain), other),
        ("cut", good, config),
        ("broken", good, config),
    ):
        write_adapter(adapter, tmp_path / name, shape)
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    tensors = load_file(tmp_path / "broken" / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, tmp_path / "broken" / "adapter_model.safetensors")
    (tmp_path / "empty").mkdir()
    engine = AsyncEngine(LLM(tiny_model_folder))

    async def scenario() -> None:
        app = create_app(engine, ServeSettings(lora_dir=tmp_path))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for name, reason in (
                ("nowhere", "has no adapter_config.json"),
                ("empty", "has no adapter_config.json"),
                ("wide", "rank 65; at most 64"),
                ("other", "shape"),
                ("cut", "bytes"),
                ("broken", "not finite"),
            ):
                answer = await client.post(LOAD, json={"lora_name": "new", "lora_path": name})
                assert answer.status_code == 400 and reason in answer.json()["error"]["message"], name
                assert str(tmp_path) not in answer.text
            answer = await client.post(LOAD, json={"lora_name": "new", "lora_path": "good"})
            assert answer.status_code == 200
            again = await client.post(LOAD, json={"lora_name": "new", "lora_path": "good"})
            assert again.status_code == 400 and "already" in again.text
            body = {"messages": HI, "temperature": 0, "max_tokens": 6}
            for model in ({}, {"model": "new"}):
                answer = await client.post("/v1/chat/completions", json={**body, **model})
                texts.append(answer.json()["choices"][0]["message"]["content"])

    texts: list[str] = []
    try:
        asyncio.run(scenario())
    finally:
        engine.close()
    llm = LLM(tiny_model_folder, adapters={"new": tmp_path / "good"})
    assert texts == [llm.chat(HI, adapter=name, temperature=0, max_tokens=6).text for name in (None, "new")]
    assert texts[0] != texts[1]
