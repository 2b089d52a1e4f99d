"""What OpenAI's client makes of answers that only a scripted engine gives: failures half-way, tool calls."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from starlette.testclient import TestClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.engine import EngineStepError, QueueFullError

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def openai_client(client: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=0)


def test_a_failure_half_way_is_raised(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    """Ending early would look like a normal, short answer."""
    engine.scripts["hi"] = ("some", EngineStepError("boom"))
    texts = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in openai_client.chat.completions.create(model="fake", messages=MESSAGES, stream=True):
            texts.append(chunk.choices[0].delta.content)
    assert texts == ["", "some"]
    assert (caught.value.code, caught.value.type) == ("internal_error", "server_error")


def test_tool_calls(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.scripts["hi"] = tuple('<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    tools: Any = [{"type": "function", "function": {"name": "f"}}]
    whole = openai_client.chat.completions.create(model="fake", messages=MESSAGES, tools=tools).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.tool_calls is not None
    (call,) = whole.message.tool_calls
    assert (call.type, call.function.name, call.function.arguments) == ("function", "f", "{}")
    with openai_client.chat.completions.stream(model="fake", messages=MESSAGES, tools=tools) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls is not None
    assert final.message.tool_calls[0].function.arguments == "{}"


def test_a_full_queue(openai_client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.refusal = QueueFullError("full")
    with pytest.raises(openai.RateLimitError) as caught:
        openai_client.chat.completions.create(model="fake", messages=MESSAGES)
    assert caught.value.code == "queue_full"
    assert caught.value.response.headers["retry-after"] == "1"
