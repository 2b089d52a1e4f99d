"""OpenAI's own Python client against a real server process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from tests.e2e.servers import API_KEY, ORIGIN, RunningServer

pytestmark = pytest.mark.e2e

MODEL = "tiny-telechat"
QUESTION = [{"role": "user", "content": "生抽与老抽的区别？"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL
    assert model.max_model_len == 2048  # type: ignore[attr-defined]


def test_whole_and_streamed_answers_are_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=30)
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage is not None and 0 < whole.usage.completion_tokens <= 30
    pieces = []
    finish = usage = None
    for chunk in client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=30, stream=True, stream_options={"include_usage": True}
    ):
        if chunk.choices:
            pieces.append(chunk.choices[0].delta.content or "")
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
    assert "".join(pieces) == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason
    assert usage is not None
    # The second time the question is found in the cache, which the details say.
    assert usage.to_dict() | {"prompt_tokens_details": None} == whole.usage.to_dict() | {
        "prompt_tokens_details": None
    }


def test_default_length_comes_from_the_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_seeds(client: openai.OpenAI) -> None:
    def sample(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, seed=seed, temperature=1.5, n=2, extra_body={"top_k": 50}
        )
        return [choice.message.content for choice in answer.choices]

    first = sample(3)
    assert first == sample(3)
    assert first != sample(4)
    assert first[0] != first[1]


def test_stop_strings(client: openai.OpenAI) -> None:
    text = (
        client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=30)
        .choices[0]
        .message.content
    )
    assert text
    stop = text[len(text) // 2]
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=30, stop=[stop])
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=5, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in logprobs.content)


def test_tools_are_accepted(client: openai.OpenAI) -> None:
    with_tools = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=TOOLS, max_tokens=3)
    without = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=3)
    assert with_tools.usage is not None and without.usage is not None
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens


def test_async_client_and_many_at_once(server: RunningServer) -> None:
    """Neighbours in the batch change nothing: all answers equal the one made alone."""

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY) as client:

            async def ask() -> str:
                stream = await client.chat.completions.create(
                    model=MODEL, messages=QUESTION, max_tokens=20, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            alone = await ask()
            return [alone, *await asyncio.gather(*(ask() for _ in range(20)))]

    answers = asyncio.run(ask_all())
    assert len(set(answers)) == 1


def test_errors_are_what_the_client_expects(client: openai.OpenAI, server: RunningServer) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    long = [{"role": "user", "content": "长" * 3000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model=MODEL, messages=long, stream=stream)
        assert (refused.value.code, refused.value.type) == (
            "context_length_exceeded",
            "invalid_request_error",
        )
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9)
    assert bad.value.param == "temperature"
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as unknown,
    ):
        stranger.models.list()
    assert unknown.value.code == "invalid_api_key"


@pytest.mark.parametrize("text", ["<_user>", "<_end>", "<_bot><_system>", "<tool_call>", "<tool_response>\n"])
def test_control_strings_in_every_text_field(client: openai.OpenAI, text: str) -> None:
    messages = [
        {"role": "system", "content": text},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text},
        {"role": "user", "content": text},
    ]
    tools = [{"type": "function", "function": {"name": text, "description": text}}]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=tools, stop=[text], user=text, max_tokens=3
    )
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_named_web_origins_may_call(server: RunningServer) -> None:
    for origin, allowed in ((ORIGIN, ORIGIN), ("https://other.example", None)):
        answer = httpx.get(f"{server.url}/health", headers={"Origin": origin}, trust_env=False)
        assert answer.headers.get("access-control-allow-origin") == allowed


def test_token_ids_outside_the_vocabulary(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=QUESTION, extra_body={"stop_token_ids": [2**40]})
    assert refused.value.param == "stop_token_ids"


def test_a_client_that_leaves_frees_its_place(server: RunningServer) -> None:
    """Many abandoned answers of full length, then one that must not wait for them."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    body = {"messages": QUESTION, "stream": True, "max_tokens": 1800, "ignore_eos": True}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as client:
        for _ in range(40):
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_raw())
        start = time.monotonic()
        last = client.post("/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 1})
        assert last.status_code == 200
        assert time.monotonic() - start < 20


@pytest.mark.slow
def test_the_demo_model_answers(demo_server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="unused") as client:
        answer = client.chat.completions.create(model="demo", messages=QUESTION).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.message.content
    for word in ("颜色", "味道", "用途"):
        assert word in answer.message.content
