"""`telechat chat`: what is printed where, what is remembered, what commands do."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from telechat.cli import chat
from telechat.cli.main import main
from telechat.errors import ContextLengthError, PromptError


class FakeLLM:
    """Answers with the number of messages; refuses more than `limit` of them."""

    name = "fake"

    def __init__(self, *, limit: int = 99, supports_system: bool = True) -> None:
        self.tokenizer = SimpleNamespace(supports_system=supports_system)
        self.limit = limit
        self.seen: list[list[dict[str, Any]]] = []
        self.default_params = None

    def chat(
        self, messages: list[dict[str, Any]], params: object, *, adapter: str | None, stream: bool
    ) -> Iterator[Any]:
        assert stream
        if len(messages) > self.limit:
            raise ContextLengthError(len(messages), self.limit)
        self.seen.append([dict(message) for message in messages])
        return iter([SimpleNamespace(text="n="), SimpleNamespace(text=str(len(messages)))])


def converse(monkeypatch: pytest.MonkeyPatch, llm: FakeLLM, lines: list[str], *words: str) -> int:
    monkeypatch.setattr(chat, "load_llm", lambda model, args, **settings: llm)
    monkeypatch.setattr(chat, "sampling_params", lambda llm, args: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return main(["chat", "fake", *words])


def test_history_grows_and_answers_go_to_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = FakeLLM()
    assert converse(monkeypatch, llm, ["one", "", "two"]) == 0
    assert capsys.readouterr().out == "n=1\nn=3\n"
    assert llm.seen[1] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "n=1"},
        {"role": "user", "content": "two"},
    ]


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM()
    lines = [
        "one",
        "/system be short",
        "two",
        "/clear",
        "three",
        "/system",
        "four",
        "/nothing",
        "/help",
        "/exit",
        "five",
    ]
    assert converse(monkeypatch, llm, lines) == 0
    assert [len(messages) for messages in llm.seen] == [1, 2, 2, 1]
    assert llm.seen[1][0] == llm.seen[2][0] == {"role": "system", "content": "be short"}
    error = capsys.readouterr().err
    assert "Unknown command /nothing" in error and "/clear" in error


def test_oldest_turn_is_dropped_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = FakeLLM(limit=4)
    assert converse(monkeypatch, llm, ["one", "two", "three"], "--system", "s") == 0
    contents = [message["content"] for message in llm.seen[-1]]
    assert contents == ["s", "two", "n=4", "three"]
    assert "oldest turn was dropped" in capsys.readouterr().err


def test_question_too_long_alone_ends_only_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = FakeLLM(limit=0)
    assert converse(monkeypatch, llm, ["one", "two"]) == 0
    assert capsys.readouterr().err.count("error: The prompt has 1 tokens") == 2


def test_ctrl_c_ends_the_answer_and_at_the_prompt_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = FakeLLM()
    plain = llm.chat

    def interrupted_once(*words: Any, **options: Any) -> Iterator[Any]:
        llm.chat = plain  # type: ignore[method-assign]
        yield SimpleNamespace(text="half")
        raise KeyboardInterrupt

    llm.chat = interrupted_once  # type: ignore[method-assign]
    assert converse(monkeypatch, llm, ["one", "two"]) == 0
    shown = capsys.readouterr()
    assert "(stopped)" in shown.err and shown.out == "halfn=1\n"

    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert main(["chat", "fake"]) == 130


def test_failed_question_is_not_remembered() -> None:
    llm = FakeLLM(limit=0)
    conversation = chat.Conversation(llm, None)
    with pytest.raises(ContextLengthError):
        conversation.ask("one")
    assert conversation.messages == []


def test_model_without_system_prompts() -> None:
    llm = FakeLLM(supports_system=False)
    with pytest.raises(PromptError, match="takes no system prompt"):
        chat.Conversation(llm, None, system="x")


def test_one_shot(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chat", str(tiny_model_folder), "--prompt", "hello", "--max-new-tokens"]
    assert main([*words, "2"]) == 0
    short = capsys.readouterr().out
    assert main([*words, "8"]) == 0
    assert len(capsys.readouterr().out) > len(short)


def test_sampling_options_arrive(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from telechat.engine import LLM

    seen = []

    def spy(self: LLM, messages: object, params: object, **options: Any) -> Iterator[Any]:
        seen.append(params)
        return iter(())

    monkeypatch.setattr(LLM, "chat", spy)
    words = "--temperature 0.5 --top_k 7 --top-p 0.9 --repetition-penalty 1.2 --seed 3 --stop A --stop B"
    assert (
        main(["chat", str(tiny_model_folder), "--prompt", "x", *shlex.split(words), "--max-new-tokens", "5"])
        == 0
    )
    (params,) = seen
    assert (params.temperature, params.top_k, params.top_p, params.repetition_penalty) == (0.5, 7, 0.9, 1.2)
    assert (params.seed, params.stop, params.max_tokens) == (3, ("A", "B"), 5)


def test_loading_options_arrive(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import telechat.engine

    seen: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def fake(model: str, **settings: Any) -> None:
        seen.update(settings, model=model)
        raise Stop

    monkeypatch.setattr(telechat.engine, "LLM", fake)
    words = "--device cpu --dtype bfloat16 --attention reference --max-model-len 77 --trust_remote_code True"
    with pytest.raises(Stop):
        main(["chat", "some/model", "--prompt", "x", *shlex.split(words)])
    assert seen == {
        "model": "some/model",
        "device": "cpu",
        "dtype": "bfloat16",
        "attention": "reference",
        "max_model_len": 77,
    }


@pytest.mark.parametrize(("words", "expected"), [([], "from-env"), (["flag"], "flag")])
def test_model_by_flag_then_environment(
    words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fake(model: str, args: object) -> FakeLLM:
        seen.append(model)
        return FakeLLM()

    monkeypatch.setattr(chat, "load_llm", fake)
    monkeypatch.setattr(chat, "sampling_params", lambda llm, args: None)
    monkeypatch.setenv("MODEL_PATH", "from-env")
    assert main(["chat", *words, "--prompt", "x"]) == 0
    monkeypatch.delenv("MODEL_PATH")
    assert main(["chat", *words, "--prompt", "x"]) == 0
    assert seen == [expected, "flag" if words else "demo"]


def test_empty_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--prompt", "  "]) == 1
    assert capsys.readouterr().err.startswith("error: The prompt is empty.")
