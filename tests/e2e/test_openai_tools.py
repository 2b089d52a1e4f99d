"""OpenAI's own Python client against a real server: tools, structured answers, the newer routes."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel
from tests.e2e.servers import API_KEY, RunningServer

from telechat.data.demo.tool_call import ToolCall

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODEL = "tiny-telechat"
QUESTION: Any = [{"role": "user", "content": "生抽与老抽的区别？"}]
CITIES = ["北京", "上海"]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": CITIES}, "days": {"enum": [1, 2]}},
                "required": ["city", "days"],
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


class Verdict(BaseModel):
    """An answer in a form that even a random model fills in within a few tokens."""

    good: bool
    mark: Literal[1, 2, 3]


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0, timeout=300) as made:
        yield made


def check_weather(arguments: str) -> None:
    read = json.loads(arguments)
    assert read["city"] in CITIES and read["days"] in (1, 2) and len(read) == 2


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_forced_calls_are_valid(client: openai.OpenAI, choice: Any, seed: int) -> None:
    """A random model, sampled, calls a function as the schema says; whole and in pieces."""
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": QUESTION,
        "tools": TOOLS,
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "temperature": 1.0,
        "seed": seed,
        "max_tokens": 400,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None and whole.message.tool_calls is not None
    (call,) = whole.message.tool_calls
    assert call.type == "function"
    if call.function.name == "weather":
        check_weather(call.function.arguments)
    else:
        assert choice == "required" and (call.function.name, call.function.arguments) == ("now", "{}")
    fragments = [
        fragment
        for chunk in client.chat.completions.create(**asked, stream=True)
        for fragment in chunk.choices[0].delta.tool_calls or ()
    ]
    assert fragments[0].id and fragments[0].function is not None
    assert fragments[0].function.name == call.function.name
    assert all(fragment.id is None and fragment.index == 0 for fragment in fragments[1:])
    texts = [fragment.function.arguments or "" for fragment in fragments if fragment.function is not None]
    assert "".join(texts) == call.function.arguments


def test_several_answers_each_with_its_own_call(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        tools=TOOLS,
        tool_choice=NAMED,
        parallel_tool_calls=False,
        n=3,
        temperature=1.0,
        seed=5,
        max_tokens=400,
    )
    for choice in answer.choices:
        assert choice.message.tool_calls is not None
        check_weather(choice.message.tool_calls[0].function.arguments)  # type: ignore[union-attr]


def test_structured_answers(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=Verdict, max_tokens=400, temperature=1.0, seed=1
    )
    assert isinstance(parsed.choices[0].message.parsed, Verdict)
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, response_format=Verdict, max_tokens=400, temperature=1.0, seed=2
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Verdict)
    for extra, pattern in (
        ({"guided_regex": "[0-9]{3}"}, lambda text: len(text) == 3 and text.isdecimal()),
        ({"structured_outputs": {"choice": CITIES}}, lambda text: text in CITIES),
        ({"guided_json": {"enum": [7]}}, lambda text: json.loads(text) == 7),
    ):
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, extra_body=extra, temperature=1.0, seed=3, max_tokens=200
        )
        assert pattern(answer.choices[0].message.content or ""), answer


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_schema_is_refused_before_the_answer_starts(client: openai.OpenAI, stream: bool) -> None:
    bad: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "objekt"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=QUESTION, response_format=bad, stream=stream)
    assert refused.value.param == "response_format"
    assert "objekt" in refused.value.message


def test_completions(client: openai.OpenAI, server: RunningServer) -> None:
    texts = ["北京", "生抽与老抽的区别"]
    alone = [client.completions.create(model=MODEL, prompt=text, max_tokens=12) for text in texts]
    together = client.completions.create(model=MODEL, prompt=texts, max_tokens=12)
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in alone]
    headers = {"Authorization": f"Bearer {API_KEY}"}
    tokens = httpx.post(f"{server.url}/tokenize", json={"prompt": texts[0]}, headers=headers, trust_env=False)
    ids = tokens.json()["tokens"]
    by_ids = client.completions.create(model=MODEL, prompt=ids, max_tokens=12)
    assert by_ids.choices[0].text == alone[0].choices[0].text
    assert by_ids.usage is not None and by_ids.usage.prompt_tokens == len(ids)
    back = httpx.post(f"{server.url}/detokenize", json={"tokens": ids}, headers=headers, trust_env=False)
    assert back.json() == {"prompt": texts[0]}
    pieces: dict[int, str] = {0: "", 1: ""}
    for chunk in client.completions.create(model=MODEL, prompt=texts, max_tokens=12, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    assert list(pieces.values()) == [choice.text for choice in together.choices]


def test_the_prompt_is_judged(client: openai.OpenAI) -> None:
    """Log-probabilities of the prompt are those that the model gives these tokens as an answer."""
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 6, "logprobs": 2, "temperature": 0}
    asked["extra_body"] = {"ignore_eos": True, "repetition_penalty": 1.0}
    answer = client.completions.create(prompt=[30, 31, 32], **asked).choices[0]
    assert answer.logprobs is not None and answer.logprobs.token_logprobs is not None
    chat = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=6, logprobs=True, extra_body={"ignore_eos": True}
    )
    assert chat.choices[0].logprobs is not None and chat.choices[0].logprobs.content is not None
    assert all(entry.bytes for entry in chat.choices[0].logprobs.content)
    echoed = client.completions.create(prompt=[30, 31, 32], echo=True, **asked).choices[0]
    assert echoed.logprobs is not None and echoed.logprobs.token_logprobs is not None
    assert echoed.logprobs.tokens is not None and len(echoed.logprobs.tokens) == 9
    assert echoed.logprobs.token_logprobs[0] is None
    assert echoed.logprobs.token_logprobs[3:] == pytest.approx(answer.logprobs.token_logprobs, abs=1e-4)
    assert echoed.text.endswith(answer.text)


def test_responses(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input="生抽与老抽的区别？", max_output_tokens=20)
    chat = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=20)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.status in ("completed", "incomplete")
    assert whole.usage is not None and chat.usage is not None
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    assert whole.usage.output_tokens == chat.usage.completion_tokens
    text = ""
    for event in client.responses.create(
        model=MODEL, input="生抽与老抽的区别？", max_output_tokens=20, stream=True
    ):
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert event.type in ("response.completed", "response.incomplete")
    assert text == event.response.output_text == whole.output_text
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="hi", previous_response_id=whole.id)
    assert refused.value.param == "previous_response_id"


def test_responses_with_tools_and_formats(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", **TOOLS[0]["function"], "strict": False}
    asked: dict[str, Any] = {"model": MODEL, "max_output_tokens": 400, "temperature": 1.0}
    given: list[Any] = [{"role": "user", "content": "天气"}]
    first = client.responses.create(
        input=given,
        tools=[tool],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        **asked,
    )
    (call,) = first.output
    assert call.type == "function_call" and first.status == "completed"
    check_weather(call.arguments)
    # What came out goes back in, as clients do it.
    given += [item.model_dump() for item in first.output]
    given.append({"type": "function_call_output", "call_id": call.call_id, "output": "晴"})
    second = client.responses.create(input=given, tools=[tool], model=MODEL, max_output_tokens=8)
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    parsed = client.responses.parse(input="?", text_format=Verdict, **asked)
    assert isinstance(parsed.output_parsed, Verdict)
    with client.responses.stream(input="?", text_format=Verdict, **asked) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, Verdict) and final.output_text == text
    with client.responses.stream(
        input="?",
        tools=[tool],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        **asked,
    ) as stream:
        arguments = "".join(
            event.delta for event in stream if event.type == "response.function_call_arguments.delta"
        )
    check_weather(arguments)


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["北京", "生抽与老抽的区别"]
    answer = client.embeddings.create(model=MODEL, input=texts)
    assert [entry.index for entry in answer.data] == [0, 1]
    for entry, text in zip(answer.data, texts, strict=True):
        assert math.sqrt(sum(number**2 for number in entry.embedding)) == pytest.approx(1, abs=1e-3)
        alone = client.embeddings.create(model=MODEL, input=text, encoding_format="float").data[0].embedding
        assert alone == pytest.approx(entry.embedding, abs=1e-5)
    last = client.embeddings.create(model=MODEL, input=texts[0], extra_body={"pooling": "last"}).data[0]
    assert last.embedding != pytest.approx(answer.data[0].embedding, abs=1e-3)
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input="长" * 3000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")


def test_the_limit_is_the_one_that_the_command_line_names(client: openai.OpenAI) -> None:
    for ask in (
        lambda: client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "长" * 3000}]
        ),
        lambda: client.completions.create(model=MODEL, prompt="长" * 3000),
        lambda: client.responses.create(model=MODEL, input="长" * 3000),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            ask()
        assert refused.value.code == "context_length_exceeded"
        assert "accepts 2047" in refused.value.message and "2048" in refused.value.message


def test_async_streams_with_tools(server: RunningServer) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY) as client:

            async def ask() -> str:
                stream = await client.chat.completions.create(
                    model=MODEL,
                    messages=QUESTION,
                    tools=TOOLS,
                    tool_choice=NAMED,
                    parallel_tool_calls=False,
                    max_tokens=400,
                    stream=True,
                )
                return "".join(
                    [
                        fragment.function.arguments or ""
                        async for chunk in stream
                        for fragment in chunk.choices[0].delta.tool_calls or ()
                        if fragment.function is not None
                    ]
                )

            return list(await asyncio.gather(*(ask() for _ in range(4))))

    answers = asyncio.run(ask_all())
    assert len(set(answers)) == 1
    check_weather(answers[0])


@pytest.mark.slow
def test_the_demo_model_calls_a_function_and_tells_the_result(demo_server: RunningServer) -> None:
    """The whole round by the model's own choice: question, call, result, answer."""
    right = 0
    with openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="unused", timeout=300) as client:
        for seed in range(6):
            row = _row_with_result(seed)
            question, expected, result, _ = row.messages
            messages: list[Any] = [question]
            tools: Any = row.tools
            asked = client.chat.completions.create(model="demo", messages=messages, tools=tools).choices[0]
            if asked.finish_reason != "tool_calls" or asked.message.tool_calls is None:
                continue
            (call,) = asked.message.tool_calls
            assert call.type == "function"
            messages += [asked.message, {**result, "tool_call_id": call.id}]
            told = client.chat.completions.create(model="demo", messages=messages, tools=tools).choices[0]
            name = expected["tool_calls"][0]["function"]["name"]
            values = row.facts["values"]
            content = told.message.content or ""
            right += call.function.name == name and all(value in content for value in values)
    # A small model is not always right; one that never sees tools or results would be never.
    assert right >= 4


def _row_with_result(seed: int) -> Any:
    rng = random.Random(seed)
    while True:
        row = ToolCall().draw(rng, "train")
        if len(row.messages) == 4 and row.facts.get("values"):
            return row
