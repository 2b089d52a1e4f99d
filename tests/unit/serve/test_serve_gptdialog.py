"""The original routes: fields, ranges, codes and the order of checks, as the original had them."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.serve.conftest import MakeClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.engine import EngineStepError

ROUTES = ("/telechat/gptDialog/v2", "/telechat/gptDialog/v4")
DIALOG = [{"role": "user", "content": "hi"}]
MESSAGES = {
    "10301": "服务必填参数缺失",
    "10904": "服务请求参数dialog错误",
    "10305": "请求参数范围错误",
    "10903": "服务执行失败",
}

both_routes = pytest.mark.parametrize("route", ROUTES)


def code_of(client: TestClient, route: str, body: Any) -> str | None:
    """The error code of an answer, None for an answer of the model; checks the whole envelope."""
    answer = client.post(route, json=body)
    assert answer.status_code == 200
    if answer.headers["content-type"] != "application/json" or "role" in answer.json():
        return None
    error = answer.json()
    assert list(error) == ["seqid", "code", "message", "flag", "data"]
    assert error == {
        "seqid": "",
        "code": error["code"],
        "message": MESSAGES[error["code"]],
        "flag": "0",
        "data": "执行失败",
    }
    code: str = error["code"]
    return code


def test_v2_streams_plain_text(client: TestClient, engine: FakeEngine) -> None:
    with client.stream("POST", ROUTES[0], json={"dialog": DIALOG}) as answer:
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "content-length" not in answer.headers
        assert "sandbox" in answer.headers["content-security-policy"]
        assert b"".join(answer.iter_raw()).decode() == "你好, world"
    assert engine.num_open == 0


def test_v4_answers_in_json(client: TestClient, engine: FakeEngine) -> None:
    answer = client.post(ROUTES[1], json={"dialog": DIALOG})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"role": "bot", "content": "你好, world"}
    assert engine.num_open == 0


@both_routes
def test_defaults(client: TestClient, engine: FakeEngine, route: str) -> None:
    client.post(route, json={"dialog": DIALOG})
    params = engine.params
    assert params is not None
    assert (params.temperature, params.top_k, params.top_p) == (0.1, 20, 0.2)
    assert (params.repetition_penalty, params.max_total_tokens, params.max_tokens) == (1.03, 4096, None)


@both_routes
def test_fields_take_effect(client: TestClient, engine: FakeEngine, route: str) -> None:
    given = {"top_k": 5, "top_p": 0.5, "temperature": 0.9, "repetition_penalty": 1.5}
    client.post(route, json={"dialog": DIALOG, "max_length": 100, **given})
    assert engine.params is not None
    assert {name: getattr(engine.params, name) for name in given} == given
    assert engine.params.max_total_tokens == 100
    client.post(route, json={"dialog": DIALOG, "do_sample": False})
    assert engine.params.is_greedy


@both_routes
def test_history_and_question(client: TestClient, engine: FakeEngine, route: str) -> None:
    dialog = [*DIALOG, {"role": "bot", "content": "hello"}, {"role": "user", "content": "again"}]
    client.post(route, json={"dialog": dialog})
    assert engine.llm.tokenizer.messages == dialog
    # A dialog that ends with the bot: its last content is the question.
    client.post(route, json={"dialog": dialog[:2]})
    assert engine.llm.tokenizer.messages == [*DIALOG, {"role": "user", "content": "hello"}]


@both_routes
@pytest.mark.parametrize("body", [{}, {"dialog": None}, {"top_k": 0}])
def test_missing_dialog(client: TestClient, route: str, body: dict[str, Any]) -> None:
    assert code_of(client, route, body) == "10301"


@both_routes
@pytest.mark.parametrize(
    "dialog",
    [
        "hi",
        {"role": "user"},
        ["hi"],
        [{"role": "bot", "content": "x"}],
        [{"role": "assistant", "content": "x"}],
        [{"content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
        [*DIALOG, *DIALOG],
    ],
)
def test_wrong_dialog(client: TestClient, route: str, dialog: Any) -> None:
    assert code_of(client, route, {"dialog": dialog}) == "10904"
    assert code_of(client, route, {"dialog": dialog, "top_k": 0}) == "10904"


@both_routes
@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("do_sample", [0, 1, "true", 1.0], [True, False]),
        ("max_length", [0, -1, 4097, 100.0, "100", True, 10**400], [3, 4096]),
        ("top_k", [0, 100, -1, 5.0, "5", True], [1, 99]),
        ("top_p", [0.0, 1.0, 0, 1, "0.5", True, -0.1], [0.001, 0.999]),
        ("temperature", [0.0, 1.0, 1, 0, "0.5", False, 1e300], [0.001, 0.999]),
        ("repetition_penalty", [1.0, 1, 100.0, 2, "1.1", True], [1.001, 99.9]),
    ],
)
def test_ranges_and_strict_types(
    client: TestClient, route: str, name: str, bad: list[Any], good: list[Any]
) -> None:
    for value in bad:
        assert code_of(client, route, {"dialog": DIALOG, name: value}) == "10305", value
    for value in [*good, None]:
        assert code_of(client, route, {"dialog": DIALOG, name: value}) is None, value


@both_routes
@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none(client: TestClient, route: str, value: str) -> None:
    body = f'{{"dialog": [{{"role": "user", "content": "hi"}}], "temperature": {value}}}'
    answer = client.post(route, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (200, "10305")


@both_routes
def test_an_empty_dialog_fails_last(client: TestClient, route: str) -> None:
    assert code_of(client, route, {"dialog": []}) == "10903"
    assert code_of(client, route, {"dialog": [], "top_p": 1.0}) == "10305"


@both_routes
def test_a_prompt_too_long_is_a_range_error(client: TestClient, route: str) -> None:
    long = [{"role": "user", "content": "x" * 50}]
    assert code_of(client, route, {"dialog": long, "max_length": 50}) == "10305"
    assert code_of(client, route, {"dialog": long, "max_length": 51}) is None
    assert code_of(client, route, {"dialog": [{"role": "user", "content": "x" * 4000}]}) == "10305"


@both_routes
@pytest.mark.parametrize("failure", [EngineStepError("boom"), ValueError("boom")])
def test_failures_before_the_answer_starts(
    client: TestClient, engine: FakeEngine, route: str, failure: Exception
) -> None:
    engine.scripts["hi"] = (failure,)
    assert code_of(client, route, {"dialog": DIALOG}) == "10903"
    assert code_of(client, route, {"dialog": [{"role": "user", "content": "refuse me"}]}) == "10903"
    assert engine.num_open == 0


def test_a_failure_later_cuts_the_connection(engine: FakeEngine) -> None:
    """Plain text has no way to say that it is incomplete; a whole answer must not be faked."""
    from telechat.serve.app import create_app
    from telechat.serve.settings import ServeSettings

    engine.scripts["hi"] = ("some", EngineStepError("boom"))
    client = TestClient(create_app(engine, ServeSettings()))
    with pytest.raises(RuntimeError, match="response already started") as caught:
        client.post(ROUTES[0], json={"dialog": DIALOG})
    assert isinstance(caught.value.__cause__, EngineStepError)
    assert engine.num_open == 0


@both_routes
def test_unknown_fields_are_ignored(client: TestClient, route: str) -> None:
    assert code_of(client, route, {"dialog": DIALOG, "seqid": "1", "stream": True}) is None


@both_routes
def test_without_content_type_as_old_clients_send_it(client: TestClient, route: str) -> None:
    answer = client.post(route, content='{"dialog": [{"role": "user", "content": "hi"}]}')
    assert answer.status_code == 200
    assert "world" in answer.text


@both_routes
def test_keys_and_limits_hold_here_too(make_client: MakeClient, route: str) -> None:
    client = make_client(api_keys=("secret",))
    assert client.post(route, json={"dialog": DIALOG}).status_code == 401
