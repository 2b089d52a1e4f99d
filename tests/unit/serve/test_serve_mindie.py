"""MindIE's routes: each form's fields, answers, streams and errors."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.serve.conftest import MakeClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.engine import EngineStepError
from telechat.serve.mindie.settings import MindieSettings

ANSWER = "你好, world"
# The fake's end token is character 2; MindIE leaves control tokens in the text.
RAW = ANSWER + "\x02"
TEXT_ROUTES = ("/generate", "/", "/generate_stream", "/infer")


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream, which are separated as clients expect them."""
    assert text.endswith("\n\n")
    return [json.loads(part.removeprefix("data: ")) for part in text[:-2].split("\n\n")]


def test_tgi_form(client: TestClient, engine: FakeEngine) -> None:
    answer = client.post("/generate", json={"inputs": "hi<_end>"})
    assert answer.status_code == 200
    assert answer.json() == {"generated_text": RAW}
    assert engine.prompt_ids == [ord("h"), ord("i"), 2]
    params = engine.params
    assert params is not None and params.is_greedy
    assert (params.max_tokens, params.repetition_penalty, params.skip_special_tokens) == (20, 1.0, False)
    assert engine.num_open == 0


@pytest.mark.parametrize("route", ["/generate", "/"])
def test_the_stream_field_decides(client: TestClient, route: str) -> None:
    assert client.post(route, json={"inputs": "hi", "stream": False}).json() == {"generated_text": RAW}
    assert len(events(client.post(route, json={"inputs": "hi", "stream": True}).text)) == 6


def test_tgi_parameters_take_effect(client: TestClient, engine: FakeEngine) -> None:
    given = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 2**64 - 1}
    more = {"max_new_tokens": 3, "stop": ["x"], "stop_sequences": ["y"], "priority": 2}
    client.post("/generate", json={"inputs": "abcdef", "parameters": {**given, **more, "truncate": 2}})
    params = engine.params
    assert params is not None
    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (0.5, 7, 0.9, 1.2)
    assert (params.seed, params.max_tokens, params.stop) == (2**63 - 1, 3, ("x", "y"))
    assert engine.prompt_ids == [ord("e"), ord("f")]
    assert engine.priority == -3


@pytest.mark.parametrize(
    ("parameters", "samples"),
    [
        ({}, False),
        ({"do_sample": True}, True),
        ({"do_sample": False, "temperature": 0.5}, False),
        ({"temperature": 0.5}, True),
        ({"top_k": 5}, True),
        ({"top_p": 0.5}, True),
        ({"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 3, "repetition_penalty": 1.1}, False),
    ],
)
def test_what_samples(
    client: TestClient, engine: FakeEngine, parameters: dict[str, Any], samples: bool
) -> None:
    client.post("/generate", json={"inputs": "hi", "parameters": parameters})
    assert engine.params is not None and engine.params.is_greedy is not samples


def test_tgi_details(client: TestClient) -> None:
    parameters = {"details": True, "do_sample": True, "return_full_text": True}
    body = client.post("/generate", json={"inputs": "hi", "parameters": parameters}).json()
    assert body["generated_text"] == "hi" + RAW
    details = body["details"]
    assert (details["finish_reason"], details["generated_tokens"], details["prompt_tokens"]) == (
        "eos_token",
        6,
        2,
    )
    assert isinstance(details["seed"], int) and details["prefill"] == []
    assert details["tokens"][0] == {"id": ord("你"), "text": "你", "logprob": -0.5, "special": False}
    assert details["tokens"][-1]["special"] is True
    parameters = {"decoder_input_details": True}
    details = client.post("/generate", json={"inputs": "hi", "parameters": parameters}).json()["details"]
    assert [token["id"] for token in details["prefill"]] == [ord("h"), ord("i")]
    assert details["seed"] is None


def test_length_is_told_from_the_end(client: TestClient, engine: FakeEngine) -> None:
    engine.finish_reason = "length"
    body = client.post("/generate", json={"inputs": "hi", "parameters": {"details": True}}).json()
    assert body["details"]["finish_reason"] == "length"
    assert body["generated_text"] == ANSWER


def test_tgi_stream(client: TestClient, engine: FakeEngine) -> None:
    answer = client.post("/generate_stream", json={"inputs": "hi", "parameters": {"details": True}})
    assert answer.headers["content-type"] == "text/event-stream"
    found = events(answer.text)
    assert "".join(event["token"]["text"] for event in found) == RAW
    assert all(event["generated_text"] is None and event["details"] is None for event in found[:-1])
    assert found[-1]["generated_text"] == RAW
    assert found[-1]["details"] == {"finish_reason": "eos_token", "generated_tokens": 6, "seed": None}
    assert found[0]["token"]["logprob"] == -0.5
    assert engine.num_open == 0


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": "hi"},
        [],
        "hi",
        None,
        {"inputs": 3},
        {"inputs": ""},
        {"inputs": "hi", "parameters": []},
        {"inputs": "hi", "parameters": {"temperature": 0}},
        {"inputs": "hi", "parameters": {"top_p": 1.5}},
        {"inputs": "hi", "parameters": {"max_new_tokens": 0}},
        {"inputs": "hi", "parameters": {"do_sample": "yes"}},
        {"inputs": "hi", "parameters": {"priority": 6}},
        {"inputs": "hi", "stream": True, "parameters": {"decoder_input_details": True}},
        {"inputs": "x" * 4000},
        {"prompt": ""},
        {"prompt": "hi", "temperature": -1},
        {"prompt": "hi", "n": 2, "best_of": 1},
        {"prompt": "hi", "n": 17},
        {"prompt": "hi", "best_of": 2, "stream": True},
        {"messages": []},
        {"messages": [{"role": "nobody", "content": "hi"}]},
    ],
)
def test_bodies_that_are_refused(client: TestClient, body: Any) -> None:
    for route in ("/generate", "/"):
        answer = client.post(route, json=body)
        assert answer.status_code == 422, answer.text
        assert list(answer.json()) == ["error", "error_type"]
        assert answer.json()["error_type"] == "validation"
        assert isinstance(answer.json()["error"], str)


def test_bodies_that_are_no_json(client: TestClient) -> None:
    for content in (b"{", b"\xff", b"[" * 200):
        answer = client.post("/generate", content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/generate", content=b'{"inputs":"hi"}', headers=form).status_code == 422
    # Old clients send no type at all.
    assert client.post("/generate", content=b'{"inputs":"hi"}').status_code == 200


def test_errors_of_the_service(make_client: MakeClient, engine: FakeEngine) -> None:
    client = make_client(max_pending_requests=1)
    engine.scripts["hi"] = (EngineStepError("boom"),)
    answer = client.post("/generate", json={"inputs": "hi"})
    assert (answer.status_code, answer.json()["error_type"]) == (500, "generation")
    engine.scripts["hi"] = ("some", EngineStepError("boom"))
    found = events(client.post("/generate_stream", json={"inputs": "hi"}).text)
    assert found[-1]["error_type"] == "generation"
    engine.scripts["hi"] = ("slow", 5.0)
    answer = client.post("/generate", json={"inputs": "hi", "parameters": {"timeout": 1}})
    assert (answer.status_code, answer.json()["error_type"]) == (504, "incomplete_generation")
    assert engine.num_open == 0


def test_max_iter_times_limits_answers(make_client: MakeClient, engine: FakeEngine) -> None:
    client = make_client(mindie=MindieSettings(max_iter_times=30))
    client.post("/generate", json={"inputs": "hi", "parameters": {"max_new_tokens": 100}})
    assert engine.params is not None and engine.params.max_tokens == 30
    client.post("/generate", json={"prompt": "hi"})
    assert engine.params.max_tokens == 30
    client.post("/generate", json={"prompt": "hi", "max_tokens": 7})
    assert engine.params.max_tokens == 7


def test_vllm_form(client: TestClient, engine: FakeEngine) -> None:
    answer = client.post("/generate", json={"prompt": "hi<_end>", "temperature": 0})
    assert answer.json() == {"text": ["hi<_end>" + ANSWER]}
    params = engine.params
    assert params is not None and params.is_greedy and params.skip_special_tokens
    assert engine.prompt_ids[-1] == 2
    given = {"top_k": -1, "top_p": 0.5, "repetition_penalty": 1.5, "presence_penalty": 1.0}
    more = {"frequency_penalty": -1.0, "seed": 3, "stop": "x", "stop_token_ids": [7], "ignore_eos": True}
    body = {"prompt": "hi", "skip_special_tokens": False, "max_tokens": 9, **given, **more}
    client.post("/generate", json=body)
    params = engine.params
    assert params is not None
    assert (params.temperature, params.top_k, params.top_p, params.seed) == (1.0, 0, 0.5, 3)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.5, 1.0, -1.0)
    assert (params.stop, params.stop_token_ids, params.ignore_eos) == (("x",), (7,), True)
    assert (params.max_tokens, params.skip_special_tokens) == (9, False)


def test_vllm_numbers_of_answers(client: TestClient, engine: FakeEngine) -> None:
    answer = client.post("/generate", json={"prompt": "hi", "n": 2})
    assert answer.json() == {"text": ["hi" + ANSWER] * 2}
    answer = client.post("/generate", json={"prompt": "hi", "n": 1, "best_of": 3})
    assert answer.json() == {"text": ["hi" + ANSWER]}
    assert engine.params is not None and engine.params.n == 3
    assert client.post("/generate", json={"prompt": "hi", "model": "other"}).status_code == 404


def test_vllm_stream(client: TestClient) -> None:
    answer = client.post("/generate", json={"prompt": "hi", "stream": True})
    assert answer.content.endswith(b"\0")
    chunks = [json.loads(part) for part in answer.content[:-1].split(b"\0")]
    assert chunks[0] == {"text": ["hi你"]}
    assert chunks[-1] == {"text": ["hi" + ANSWER]}
    assert all(later["text"][0].startswith(one["text"][0]) for one, later in itertools.pairwise(chunks))


def test_chat_form(client: TestClient, engine: FakeEngine) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "bot", "content": "hello"},
        {"role": "user", "content": "again"},
    ]
    body = client.post("/generate", json={"messages": messages, "history": [], "question": "x"}).json()
    assert body["object"] == "chat.completion" and isinstance(body["created"], int)
    message = {"role": "assistant", "content": ANSWER}
    assert body["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]
    assert [message["role"] for message in engine.llm.tokenizer.messages] == ["user", "assistant", "user"]
    params = engine.params
    assert params is not None and params.is_greedy and params.max_total_tokens == 512
    more = {"do_sample": True, "temperature": 0.5, "top_p": 0.4, "top_k": 9, "repetition_penalty": 1.1}
    client.post("/generate", json={"messages": messages[:1], "max_length": 90, **more})
    params = engine.params
    assert (params.temperature, params.top_p, params.top_k) == (0.5, 0.4, 9)
    assert (params.repetition_penalty, params.max_total_tokens) == (1.1, 90)
    client.post("/generate", json={"messages": messages[:1], "do_sample": True})
    assert engine.params.top_k == 1


def test_chat_stream(client: TestClient) -> None:
    messages = [{"role": "user", "content": "hi"}]
    found = events(client.post("/generate", json={"messages": messages, "stream": True}).text)
    assert {event["object"] for event in found} == {"chat.completion.chunk"}
    choices = [event["choices"][0] for event in found]
    assert choices[0] == {"index": 0, "delta": {"role": "assistant"}}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == ANSWER
    assert choices[-1] == {"index": 0, "delta": {}, "finish_reason": "stop"}


def test_chat_refusals(client: TestClient) -> None:
    bad = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    answer = client.post("/generate", json={"messages": bad})
    assert (answer.status_code, answer.json()["detail"]) == (400, "Invalid request")
    good = [{"role": "user", "content": "x" * 50}]
    for max_length in (50, 4001):
        answer = client.post("/generate", json={"messages": good, "max_length": max_length})
        choice = answer.json()["choices"][0]
        assert answer.status_code == 200 and answer.json()["object"] == "chat.completion"
        assert choice["finish_reason"] == "error" and choice["message"].startswith("ValueError('")
        answer = client.post("/generate", json={"messages": good, "max_length": max_length, "stream": True})
        assert events(answer.text)[0]["choices"][0]["finish_reason"] == "error"


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_triton_text(client: TestClient, version: str) -> None:
    url = f"/v2/models/fake{version}/generate"
    given = version.rpartition("/")[2] or None
    parameters = {"details": True, "perf_stat": True, "batch_size": 100, "typical_p": 0.5}
    body = client.post(url, json={"id": "a1", "text_input": "hi", "parameters": parameters}).json()
    details = body.pop("details")
    assert body == {"id": "a1", "model_name": "fake", "model_version": given, "text_output": RAW}
    assert (details["finish_reason"], details["generated_tokens"]) == ("eos_token", 6)
    assert details["first_token_cost"] >= 0 and details["decode_cost"] >= 0
    found = events(client.post(url + "_stream", json={"text_input": "hi"}).text)
    assert "".join(event["text_output"] for event in found) == RAW
    assert "id" not in found[0] and "details" not in found[0]
    assert client.post("/v2/models/other/generate", json={"text_input": "hi"}).status_code == 404
    assert client.post(url, json={"inputs": "hi"}).status_code == 422


def test_triton_tensor(client: TestClient, engine: FakeEngine) -> None:
    tensor = {"name": "input0", "shape": [1, 2], "datatype": "UINT32", "data": [104, 105]}
    body = {"id": "42", "inputs": [tensor], "outputs": [{"name": "mine"}]}
    engine.llm.tokenizer.messages = [{"content": "hi"}]
    found = client.post("/v2/models/fake/infer", json=body).json()
    output = found["outputs"][0]
    assert (found["id"], output["name"], output["shape"], output["datatype"]) == (
        "42",
        "mine",
        [1, 6],
        "UINT32",
    )
    assert output["data"] == [ord(piece[0]) for piece in ("你", "好", ", ", "wor", "ld")] + [2]
    assert engine.prompt_ids == [104, 105]
    tensor["shape"] = [3]
    assert client.post("/v2/models/fake/infer", json=body).status_code == 422


def test_native_forms(client: TestClient, engine: FakeEngine) -> None:
    assert client.post("/infer", json={"inputs": "hi"}).json() == {"generated_text": RAW}
    parameters = {"details": True, "do_sample": True, "seed": 5, "priority": 5, "timeout": 10}
    body = client.post("/infer_token", json={"input_id": [104, 105], "parameters": parameters}).json()
    assert body["details"] == {"finish_reason": "eos_token", "generated_tokens": 6, "seed": 5}
    assert engine.prompt_ids == [104, 105] and engine.priority == 0
    found = events(client.post("/infer", json={"inputs": "hi", "stream": True}).text)
    assert found[0]["prefill_time"] >= 0 and found[0]["decode_time"] is None
    assert found[0]["token"] == {"id": ord("你"), "text": "你"}
    assert found[1]["prefill_time"] is None and found[1]["decode_time"] >= 0
    assert found[-1]["generated_text"] == RAW
    assert client.post("/infer_token", json={"input_id": []}).status_code == 422
    assert client.post("/infer_token", json={"input_id": [-1]}).status_code == 422


def test_metadata(make_client: MakeClient) -> None:
    mindie = MindieSettings(max_batch_size=9, max_prefill_tokens=77)
    client = make_client(mindie=mindie, max_prompt_tokens=100)
    for route in ("/v2/health/live", "/v2/health/ready", "/v2/models/fake/ready", "/health/timed"):
        assert client.get(route).status_code == 200, route
    assert client.get("/v2/models/fake/versions/1/ready").status_code == 200
    assert client.get("/health/timed-2").status_code == 200
    assert client.get("/health/timed-0").status_code == 422
    assert client.get("/v2/models/other/ready").status_code == 404
    slots = client.get("/v2/models/fake/getSlotCount").json()
    assert slots == {"total_slots": 9, "free_slots": 9, "available_tokens_length": 4000}
    info = client.get("/info").json()
    assert (info["max_batch_total_tokens"], info["max_concurrent_requests"]) == (77, 9)
    assert (info["max_input_length"], info["models"][0]["max_total_tokens"]) == (100, 4000)
    assert info["models"][0]["model_id"] == "fake"
    assert client.get("/health").json()["code"] == 200
    assert client.get("/v2").json()["extensions"]["max_prefill_tokens"] == 77
    assert client.get("/v2/models/fake").json()["name"] == "fake"


def test_a_dead_engine_is_not_ready(client: TestClient, engine: FakeEngine) -> None:
    engine.is_alive = False
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/models/fake/ready").status_code == 503
    engine.refusal = EngineStepError("boom")
    assert client.get("/health/timed").status_code == 500


def test_stop_service_only_on_its_port(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, signal: sent.append(signal))
    assert make_client().get("/stopService").status_code == 403
    client = make_client(mindie=MindieSettings(management_port=1026))
    assert client.get("/stopService").status_code == 403
    assert sent == []
    client.base_url = "http://testserver:1026"  # type: ignore[assignment]
    assert client.get("/stopService").status_code == 200
    assert len(sent) == 1


def test_keys_hold_here_too(make_client: MakeClient) -> None:
    client = make_client(api_keys=("secret",))
    for route in TEXT_ROUTES:
        assert client.post(route, json={"inputs": "hi"}).status_code == 401
    assert client.get("/info").status_code == 401
    assert client.get("/v2/health/live").status_code == 200


def test_the_request_of_the_page(client: TestClient, engine: FakeEngine) -> None:
    page = (Path(__file__).parents[3] / "docs" / "mindie.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("curl "))
    words = shlex.split(line)
    route = words[1].removeprefix("http://127.0.0.1:1025")
    answer = client.post(
        route, content=words[words.index("-d") + 1].encode(), headers={"Content-Type": "application/json"}
    )
    assert answer.json() == {"generated_text": RAW}
    assert engine.params is not None and engine.params.max_tokens == 512 and engine.params.is_greedy
