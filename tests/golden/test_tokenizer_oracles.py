"""Our own tokenizer folders as other programs read them: transformers, and any Jinja renderer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.tokenizer_samples import build_byte_pairs, golden_chats, sample_texts

from telechat.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_byte_pairs(tmp_path_factory.mktemp("byte_pairs"))


@pytest.mark.parametrize("case", golden_chats()["template"], ids=lambda case: case["prompt"][-12:])
def test_transformers_renders_the_same_conversation(folder: Path, case: dict[str, Any]) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    settings = {"tools": case["tools"] or None, "add_generation_prompt": case["add_generation_prompt"]}
    assert theirs.apply_chat_template(case["messages"], tokenize=False, **settings) == case["prompt"]
    ours = load_tokenizer(folder).apply_chat_template(case["messages"], official=True, **settings)
    assert theirs.apply_chat_template(case["messages"], return_dict=False, **settings) == ours


def test_transformers_encodes_and_decodes_the_same(folder: Path) -> None:
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in [*sample_texts(), "<_user>a<tool_call>b</tool_call><_end>"]:
        ids = ours.encode(text, parse_special=True)
        assert theirs.encode(text, add_special_tokens=False) == ids
        for skip in (True, False):
            assert theirs.decode(ids, skip_special_tokens=skip) == ours.decode(ids, skip_special_tokens=skip)
