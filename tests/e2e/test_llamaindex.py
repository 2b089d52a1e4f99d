"""LlamaIndex's `OpenAILike` talks to a real server: chat, completion, tools.

Runs under `make oracles`, which installs LlamaIndex apart.
"""

# No `from __future__ import annotations`: LlamaIndex reads the types of a tool as they stand.
from typing import Any, Literal

import pytest
from tests.e2e.servers import API_KEY, RunningServer

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(600)]

MODEL = "tiny-telechat"


def weather(city: Literal["北京", "上海"]) -> str:
    """Tell the weather of a city."""
    return f"{city}: 晴"


def language_model(server: RunningServer, **settings: Any) -> Any:
    """LlamaIndex's model, pointed at the server as its users do it."""
    from llama_index.llms.openai_like import OpenAILike

    fields = {"is_chat_model": True, "context_window": 2048, "max_tokens": 8, "temperature": 0}
    return OpenAILike(
        model=MODEL, api_base=f"{server.url}/v1", api_key=API_KEY, max_retries=0, **{**fields, **settings}
    )


def message(text: str) -> Any:
    from llama_index.core.llms import ChatMessage

    return ChatMessage(role="user", content=text)


def test_chat_whole_and_streamed(server: RunningServer) -> None:
    model = language_model(server)
    whole = model.chat([message("生抽与老抽的区别？")]).message.content
    assert whole
    *_, last = model.stream_chat([message("生抽与老抽的区别？")])
    assert last.message.content == whole


def test_plain_completion(server: RunningServer) -> None:
    model = language_model(server, is_chat_model=False)
    whole = model.complete("北京").text
    *_, last = model.stream_complete("北京")
    assert last.text == whole


def test_tools(server: RunningServer) -> None:
    from llama_index.core.tools import FunctionTool

    model = language_model(server, is_function_calling_model=True, max_tokens=300)
    tool = FunctionTool.from_defaults(weather)
    answer = model.chat_with_tools([tool], user_msg="天气", tool_required=True)
    (call,) = model.get_tool_calls_from_response(answer)[:1]
    assert call.tool_name == "weather" and call.tool_kwargs["city"] in ("北京", "上海")
    *_, last = model.stream_chat_with_tools([tool], user_msg="天气", tool_required=True)
    (streamed,) = model.get_tool_calls_from_response(last)[:1]
    assert streamed.tool_kwargs == call.tool_kwargs


def test_the_context_length_is_told_where_it_must_be_typed(server: RunningServer) -> None:
    """LlamaIndex asks its user for the context window; the model list has it."""
    import httpx

    headers = {"Authorization": f"Bearer {API_KEY}"}
    card = httpx.get(f"{server.url}/v1/models/{MODEL}", headers=headers, trust_env=False).json()
    assert card["max_model_len"] == language_model(server).metadata.context_window
