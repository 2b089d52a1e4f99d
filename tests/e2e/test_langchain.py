"""LangChain's own clients talk to a real server: whole, streamed, with tools, structured, as an agent.

Runs under `make oracles`, which installs LangChain apart.
"""

from __future__ import annotations

import random
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from tests.e2e.servers import API_KEY, RunningServer

from telechat.data.demo.tool_call import ToolCall

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(600)]

MODEL = "tiny-telechat"
QUESTION = [("system", "be short"), ("human", "生抽与老抽的区别？")]


class Verdict(BaseModel):
    """An answer in a form that even a random model fills in within a few tokens."""

    good: bool
    mark: Literal[1, 2, 3]


def weather(city: Literal["北京", "上海"]) -> str:
    """Tell the weather of a city."""
    return f"{city}: 晴"


def chat_model(server: RunningServer, **settings: Any) -> Any:
    """LangChain's chat model, pointed at the server."""
    from langchain_openai import ChatOpenAI

    fields = {"api_key": API_KEY, "model": MODEL, "temperature": 0, "max_tokens": 8, "max_retries": 0}
    return ChatOpenAI(base_url=f"{server.url}/v1", **{**fields, **settings})


@pytest.mark.parametrize("newer", [False, True], ids=["chat", "responses"])
def test_invoke_and_stream_agree(server: RunningServer, newer: bool) -> None:
    chat = chat_model(server, use_responses_api=newer)
    whole = chat.invoke(QUESTION)
    assert whole.text
    assert whole.usage_metadata["output_tokens"] <= 8
    assert "".join(chunk.text for chunk in chat.stream(QUESTION)) == whole.text
    if not newer:
        assert whole.response_metadata["finish_reason"] in ("length", "stop")


@pytest.mark.parametrize("newer", [False, True], ids=["chat", "responses"])
def test_a_forced_call(server: RunningServer, newer: bool) -> None:
    chat = chat_model(server, max_tokens=300, use_responses_api=newer)
    bound = chat.bind_tools([weather], tool_choice="weather", parallel_tool_calls=False)
    answer = bound.invoke(QUESTION)
    (call,) = answer.tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in ("北京", "上海")
    assert not answer.invalid_tool_calls
    joined = None
    for chunk in bound.stream(QUESTION):
        joined = chunk if joined is None else joined + chunk
    assert joined is not None
    assert [(one["name"], one["args"]) for one in joined.tool_calls] == [("weather", call["args"])]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_answers(server: RunningServer, method: str) -> None:
    chat = chat_model(server, max_tokens=400)
    assert isinstance(chat.with_structured_output(Verdict, method=method).invoke(QUESTION), Verdict)


def test_embeddings(server: RunningServer) -> None:
    from langchain_openai import OpenAIEmbeddings

    # Otherwise LangChain sends the token ids of another model.
    embeddings = OpenAIEmbeddings(
        base_url=f"{server.url}/v1", api_key=API_KEY, model=MODEL, check_embedding_ctx_length=False
    )
    first, second = embeddings.embed_documents(["北京", "生抽"])
    assert len(first) == len(second) > 1
    assert embeddings.embed_query("北京") == pytest.approx(first, abs=1e-4)


def test_plain_completions(server: RunningServer) -> None:
    from langchain_openai import OpenAI

    model = OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, model=MODEL, max_tokens=8, temperature=0)
    whole = model.invoke("北京")
    assert "".join(model.stream("北京")) == whole
    assert model.generate(["北京", "上海"]).generations[0][0].text == whole


def test_wrong_key_is_an_authentication_error(server: RunningServer) -> None:
    import openai

    with pytest.raises(openai.AuthenticationError):
        chat_model(server, api_key="sk-wrong").invoke("hello")


def test_an_agent(demo_server: RunningServer) -> None:
    """Question, call, result, answer, by the demo model's own choice at each turn."""
    from langchain_core.messages import HumanMessage, ToolMessage

    num_right = 0
    for seed in range(6):
        row = _row_with_result(seed)
        agent = chat_model(demo_server, model="demo", max_tokens=200).bind_tools(row.tools)
        messages: list[Any] = [HumanMessage(row.messages[0]["content"])]
        num_calls = 0
        for _ in range(3):
            answer = agent.invoke(messages)
            messages.append(answer)
            if not answer.tool_calls:
                break
            num_calls += len(answer.tool_calls)
            for call in answer.tool_calls:
                messages.append(ToolMessage(row.messages[2]["content"], tool_call_id=call["id"]))
        text = messages[-1].text
        num_right += num_calls == 1 and all(value in text for value in row.facts["values"])
    # A small model is not always right; one whose calls or results got lost would be never.
    assert num_right >= 4


def _row_with_result(seed: int) -> Any:
    rng = random.Random(seed)
    while True:
        row = ToolCall().draw(rng, "train")
        if len(row.messages) == 4 and row.facts.get("values"):
            return row
