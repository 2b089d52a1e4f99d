"""Conversations against recordings of the official code: its `chat` method and TeleChat2's template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.shared_data import needs_shared
from tests.tokenizer_samples import GENERATION_CONFIGS, golden_chats, official_folder

from telechat.errors import PromptError
from telechat.tokenizer import CHAT_FORMATS, Tokenizer, load_tokenizer
from telechat.tokenizer.messages import check_tools, read_messages
from telechat.tokenizer.official_prompt import official_chat_prompt

CHATS = golden_chats()
GENERATIONS = ("telechat-12b", "telechat2-115b")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root: Path = tmp_path_factory.mktemp("official")
    names = (*GENERATIONS, "telechat2")
    return {name: load_tokenizer(official_folder(root / name, name)) for name in names}


@needs_shared
def test_formats_are_found(tokenizers: dict[str, Tokenizer]) -> None:
    found = {name: tokenizer.chat_format.name for name, tokenizer in tokenizers.items()}
    assert found == {
        "telechat-12b": "telechat1",
        "telechat2-115b": "telechat2-115b",
        "telechat2": "telechat2",
    }


@needs_shared
@pytest.mark.parametrize("name", GENERATIONS)
@pytest.mark.parametrize("case", CHATS["chat_method"], ids=lambda case: case["question"][:12])
def test_chat_method(tokenizers: dict[str, Tokenizer], name: str, case: dict[str, Any]) -> None:
    settings = {"max_length": 20, "max_new_tokens": None, **GENERATION_CONFIGS[name], **case["overrides"]}

    def build() -> list[int]:
        return official_chat_prompt(
            tokenizers[name],
            case["question"],
            case["history"],
            seq_length=case["seq_length"],
            max_length=settings["max_length"],
            max_new_tokens=settings["max_new_tokens"],
            parse_special=True,
        )

    if "error" in case[name]:
        with pytest.raises(PromptError):
            build()
    else:
        assert build() == case[name]["ids"]


@pytest.mark.parametrize("case", CHATS["template"], ids=lambda case: case["messages"][0]["content"][:12])
def test_template_text(case: dict[str, Any]) -> None:
    parts = CHAT_FORMATS["telechat2"].render(
        read_messages(case["messages"]),
        check_tools(case["tools"]),
        add_generation_prompt=case["add_generation_prompt"],
        official=False,
    )
    assert "".join(part.text for part in parts) == case["prompt"]


@needs_shared
@pytest.mark.parametrize("case", CHATS["template"], ids=lambda case: case["messages"][0]["content"][:12])
def test_template_ids(tokenizers: dict[str, Tokenizer], case: dict[str, Any]) -> None:
    tokenizer = tokenizers["telechat2"]
    arguments = (case["messages"], case["tools"], case["add_generation_prompt"])
    assert tokenizer.apply_chat_template(*arguments, official=True) == case["ids"]
    ours = tokenizer.apply_chat_template(*arguments)
    if any("<_" in (message["content"] or "") for message in case["messages"]):
        assert ours != case["ids"], "a control string in the content must stay text"
    else:
        assert ours == case["ids"]


@needs_shared
def test_own_format_equals_chat_method_where_nothing_is_cut(tokenizers: dict[str, Tokenizer]) -> None:
    for case in CHATS["chat_method"]:
        roles = {message["role"] for message in case["history"]}
        if case["overrides"] or "system" in roles or "<_" in case["question"]:
            continue
        messages = [*case["history"], {"role": "user", "content": case["question"]}]
        for name in GENERATIONS:
            assert tokenizers[name].apply_chat_template(messages) == case[name]["ids"]


@needs_shared
@pytest.mark.parametrize("name", GENERATIONS)
def test_official_format_equals_chat_method_where_nothing_is_cut(
    tokenizers: dict[str, Tokenizer], name: str
) -> None:
    for case in CHATS["chat_method"]:
        if not case["overrides"]:
            messages = [*case["history"], {"role": "user", "content": case["question"]}]
            assert tokenizers[name].apply_chat_template(messages, official=True) == case[name]["ids"]
