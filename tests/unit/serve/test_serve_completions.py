"""Plain completions over a scripted engine: forms of prompts, echo, log-probabilities in their old form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.serve.conftest import MakeClient
from tests.unit.serve.serve_fakes import MAX_MODEL_LEN, FakeEngine

from telechat.engine import EngineStepError, QueueFullError

URL = "/v1/completions"
ANSWER = "你好, world"


def ask(client: TestClient, prompt: Any = "hi", **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"prompt": prompt, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stream(client: TestClient, prompt: Any = "hi", **fields: Any) -> list[Any]:
    answer = client.post(URL, json={"prompt": prompt, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    texts = [event.removeprefix("data: ") for event in answer.text.split("\n\n")[:-1]]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


def joined(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """The answers that the chunks of a stream build up, by index."""
    answers: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            answer = answers.setdefault(choice["index"], {**choice, "text": "", "logprobs": None})
            answer["text"] += choice["text"]
            answer["finish_reason"] = choice["finish_reason"]
            if choice["logprobs"] is not None:
                before = answer["logprobs"] or {name: [] for name in choice["logprobs"]}
                answer["logprobs"] = {name: before[name] + choice["logprobs"][name] for name in before}
    return answers


def test_whole_and_streamed(client: TestClient, engine: FakeEngine) -> None:
    answer = ask(client)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [{"index": 0, "text": ANSWER, "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    *chunks, done = stream(client)
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [choice["text"] for chunk in chunks for choice in chunk["choices"]] == [
        *("你", "好", ", ", "wor", "ld"),
        "",
    ]
    assert joined(chunks)[0] == answer["choices"][0]
    *_, usage, _ = stream(client, stream_options={"include_usage": True})
    assert (usage["choices"], usage["usage"]) == ([], answer["usage"])
    assert engine.num_open == 0


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99]], ["ab", "c"]),
        (["ab", [99]], ["ab", "c"]),
    ],
)
def test_forms_of_prompts(client: TestClient, engine: FakeEngine, prompt: Any, prompts: list[str]) -> None:
    for text in prompts:
        engine.scripts[text] = (f"<{text}>",)
    expected = [f"<{text}>" for text in prompts for _ in range(2)]
    answer = ask(client, prompt, n=2)
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))
    answers = joined(stream(client, prompt, n=2)[:-1])
    assert [answers[index]["text"] for index in sorted(answers)] == expected
    assert engine.num_open == 0


def test_echo(client: TestClient) -> None:
    for prompt in ("hi", [104, 105]):
        assert ask(client, prompt, echo=True)["choices"][0]["text"] == f"hi{ANSWER}"
        assert joined(stream(client, prompt, echo=True)[:-1])[0]["text"] == f"hi{ANSWER}"
    both = ask(client, ["a", "b"], echo=True, n=2)["choices"]
    assert [choice["text"] for choice in both] == [f"a{ANSWER}"] * 2 + [f"b{ANSWER}"] * 2


def test_logprobs(client: TestClient, engine: FakeEngine) -> None:
    choice = ask(client, logprobs=1)["choices"][0]
    assert choice["logprobs"]["tokens"] == ["你", "好", ",", "w", "l"]
    assert choice["logprobs"]["token_logprobs"] == [-0.5] * 5
    assert choice["logprobs"]["top_logprobs"][0] == {"你": -0.5, "A": -9999.0}
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]
    assert joined(stream(client, logprobs=1)[:-1])[0]["logprobs"] == choice["logprobs"]
    assert engine.params is not None and engine.params.prompt_logprobs is None


def test_echoed_logprobs_are_those_of_the_prompt_too(client: TestClient, engine: FakeEngine) -> None:
    choice = ask(client, "abc", logprobs=2, echo=True)["choices"][0]
    logprobs = choice["logprobs"]
    assert engine.params is not None and engine.params.prompt_logprobs == 2
    assert logprobs["tokens"][:4] == ["a", "b", "c", "你"]
    assert logprobs["token_logprobs"][:4] == [None, -1.0, -1.0, -0.5]
    assert logprobs["top_logprobs"][:2] == [None, {"A": -0.25, "b": -1.0}]
    assert logprobs["text_offset"][:4] == [0, 1, 2, 3]
    assert joined(stream(client, "abc", logprobs=2, echo=True)[:-1])[0]["logprobs"] == logprobs


def test_only_the_prompt_is_judged(client: TestClient) -> None:
    """No answer was asked for, so none is shown or counted."""
    answer = ask(client, "abc", logprobs=0, echo=True, max_tokens=0)
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -1.0]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    *chunks, usage, _ = stream(client, "abc", echo=True, max_tokens=0, stream_options={"include_usage": True})
    assert joined(chunks)[0]["text"] == "abc"
    assert usage["usage"] == answer["usage"]


def test_fields_reach_the_engine(client: TestClient, engine: FakeEngine) -> None:
    ask(client)
    assert engine.params == engine.llm.default_params
    ask(client, max_tokens=3, temperature=0.5, seed=1, stop="x", top_k=4, n=2, best_of=2, guided_choice=["a"])
    assert engine.params is not None
    assert (engine.params.max_tokens, engine.params.temperature, engine.params.n) == (3, 0.5, 2)
    assert (engine.params.seed, engine.params.stop, engine.params.top_k) == (1, ("x",), 4)
    assert engine.params.structured_outputs is not None
    # What looks like a control token stays text.
    ask(client, "<_end>")
    assert engine.prompt_ids == [ord(character) for character in "<_end>"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [0x110000]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 17}, "n"),
        ({"prompt": ["a"] * 60, "n": 9}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
    ],
)
def test_a_bad_field_is_named(client: TestClient, fields: dict[str, Any], param: str) -> None:
    answer = client.post(URL, json={"prompt": "hi", **fields})
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, None)


def test_one_prompt_too_long_refuses_all(client: TestClient, engine: FakeEngine) -> None:
    answer = client.post(URL, json={"prompt": ["hi", "x" * MAX_MODEL_LEN]})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert str(MAX_MODEL_LEN) in error["message"]
    assert engine.num_open == 0


def test_a_prompt_that_the_engine_refuses_ends_those_before_it(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream_one = engine.stream

    def refuse_second(prompt_ids: list[int], *arguments: Any, **fields: Any) -> Any:
        if prompt_ids == [98]:
            raise QueueFullError("full")
        return stream_one(prompt_ids, *arguments, **fields)

    monkeypatch.setattr(engine, "stream", refuse_second)
    assert client.post(URL, json={"prompt": ["a", "b"]}).status_code == 429
    assert engine.num_open == 0


def test_a_failure_of_one_prompt_ends_all(client: TestClient, engine: FakeEngine) -> None:
    engine.scripts = {"a": ("x", EngineStepError("boom")), "b": ("y", 30.0)}
    answer = client.post(URL, json={"prompt": ["a", "b"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert engine.num_open == 0
    assert stream(client, ["a", "b"])[-1]["error"]["code"] == "internal_error"
    assert engine.num_open == 0


def test_cached_tokens_are_reported(client: TestClient, engine: FakeEngine) -> None:
    engine.num_cached_tokens = 1
    usage = ask(client, ["ab", "cd"], n=2)["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


def test_every_place_is_given_back(make_client: MakeClient) -> None:
    client = make_client(max_pending_requests=1)
    for fields in ({}, {"stream": True}, {"prompt": []}, {"guided_regex": "("}):
        client.post(URL, json={"prompt": "hi", **fields})
    assert client.post(URL, json={"prompt": "hi"}).status_code == 200
