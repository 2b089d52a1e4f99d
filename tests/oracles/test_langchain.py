"""LangChain's own client for OpenAI-compatible services talks to ours, as a user of LangChain sets it up."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.servers import API_KEY, RunningServer, running_server

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def service(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    """A server with a random model and the key API_KEY."""
    log = tmp_path_factory.mktemp("logs") / "server.log"
    with running_server(tiny_model_folder, log, key=API_KEY) as running:
        yield running


@pytest.fixture
def chat(service: RunningServer):  # type: ignore[no-untyped-def]
    """LangChain's chat model, pointed at the service."""
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        base_url=f"{service.url}/v1", api_key=API_KEY, model="default", temperature=0, max_tokens=8
    )


@pytest.fixture
def model_name(service: RunningServer) -> str:
    import httpx

    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {API_KEY}"}) as client:
        return client.get(f"{service.url}/v1/models").json()["data"][0]["id"]


def test_invoke_and_stream_agree(chat, model_name: str) -> None:  # type: ignore[no-untyped-def]
    chat.model_name = model_name
    messages = [("system", "be short"), ("human", "生抽与老抽的区别？")]
    whole = chat.invoke(messages)
    assert whole.content
    assert whole.response_metadata["finish_reason"] in ("length", "stop")
    assert whole.usage_metadata["output_tokens"] <= 8
    streamed = "".join(chunk.content for chunk in chat.stream(messages))
    assert streamed == whole.content


def test_tools_are_accepted(chat, model_name: str) -> None:  # type: ignore[no-untyped-def]
    chat.model_name = model_name

    def weather(city: str) -> str:
        """Tell the weather of a city."""
        return city

    answer = chat.bind_tools([weather]).invoke("hello")
    assert isinstance(answer.content, str)


def test_wrong_key_is_an_authentication_error(service: RunningServer, model_name: str) -> None:
    import openai
    from langchain_openai import ChatOpenAI

    client = ChatOpenAI(base_url=f"{service.url}/v1", api_key="sk-wrong", model=model_name, max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.invoke("hello")
