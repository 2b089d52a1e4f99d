"""Encoding, decoding and conversations on a byte-level vocabulary of the demo model's kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tokenizer_samples import build_byte_pairs, build_pieces, golden_chats

from telechat.errors import ContextLengthError, PromptError, TokenizerError
from telechat.tokenizer import Tokenizer, load_tokenizer
from telechat.tokenizer.official_prompt import official_chat_prompt
from telechat.tokenizer.piece_decoder import PieceRun
from telechat.tokenizer.registered import RegisteredToken, split_at_registered
from telechat.tokenizer.stream import ByteStreamDecoder
from telechat.tokenizer.truncation import check_prompt_length, drop_oldest_turns

CALL = {"function": {"name": "f", "arguments": {"a": 1}}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(build_byte_pairs(tmp_path_factory.mktemp("byte_pairs")))


def test_special_strings_only_on_request(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<_user>a<_end>", parse_special=True) == [4, *tokenizer.encode("a"), 2]
    assert not set(tokenizer.encode("<_user>a<_end>")) & tokenizer.control_ids
    assert tokenizer.encode("") == []


def test_skipping_keeps_tool_tags(tokenizer: Tokenizer) -> None:
    ids = [1, 4, *tokenizer.encode("a"), 8, *tokenizer.encode("{}"), 9, 2]
    assert tokenizer.decode(ids) == "<_start><_user>a<tool_call>{}</tool_call><_end>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool_call>{}</tool_call>"


def test_ids_outside_the_vocabulary(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for other in (tokenizer, load_tokenizer(build_pieces(tmp_path, "telechat2"))):
        assert other.decode([9999]) == "\ufffd"  # a spare row of a model may be sampled
        assert other.id_to_token(9999) is None
        for skip in (True, False):
            with pytest.raises(TokenizerError, match="-1"):
                other.decode([-1], skip_special_tokens=skip)


def test_unusable_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match=r"U\+D800"):
        tokenizer.encode("ab\ud800")
    with pytest.raises(PromptError, match="bytes"):
        tokenizer.encode(b"ab")  # type: ignore[arg-type]


@pytest.mark.parametrize("case", golden_chats()["template"], ids=lambda case: case["prompt"][-12:])
def test_template_layout(tokenizer: Tokenizer, case: dict[str, Any]) -> None:
    arguments = (case["messages"], case["tools"], case["add_generation_prompt"])
    ids = tokenizer.apply_chat_template(*arguments)
    assert tokenizer.decode(ids) == case["prompt"]
    assert tokenizer.apply_chat_template(*arguments, official=True) == tokenizer.encode(
        case["prompt"], parse_special=True
    )
    if "<_end>" not in case["messages"][0]["content"]:
        # Between control tokens the text is encoded in one go, so other programs arrive at the same ids.
        assert ids == tokenizer.encode(case["prompt"], parse_special=True)


def test_loss_mask_covers_what_the_assistant_writes(tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "text", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": "answer"},
    ]
    ids, mask = tokenizer.encode_with_loss_mask(messages)
    assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    learned = tokenizer.decode([token_id for token_id, is_answer in zip(ids, mask, strict=True) if is_answer])
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert learned == f"text{call}\n{call}<_end>answer<_end>"


def test_byte_stream_reads_each_token_once() -> None:
    looked_up: list[int] = []

    def token_bytes(token_id: int) -> bytes:
        looked_up.append(token_id)
        return "你".encode()[token_id : token_id + 1]

    stream = ByteStreamDecoder(token_bytes)
    assert [stream.push(token_id) for token_id in (0, 1, 2, 0)] == ["", "", "你", ""]
    assert stream.finish() == "\ufffd"
    assert looked_up == [0, 1, 2, 0]


def test_piece_stream_cost_is_linear(tmp_path: Path) -> None:
    processor = load_tokenizer(build_pieces(tmp_path, "telechat2")).vocabulary._official  # type: ignore[attr-defined]

    class Counting:
        calls = 0

        def __getattr__(self, name: str) -> Any:
            Counting.calls += 1
            return getattr(processor, name)

    run = PieceRun(Counting())  # type: ignore[arg-type]
    ids = processor.encode("你好，世界 hello 龘😀 " * 200)
    assert "".join(run.push(token_id) for token_id in ids) == processor.decode(ids)
    assert Counting.calls <= 4 * len(ids) + 1


def test_registered_tokens_swallow_spaces_when_told() -> None:
    left = RegisteredToken(content="<l>", token_id=1, lstrip=True)
    right = RegisteredToken(content="<r>", token_id=2, rstrip=True)
    assert split_at_registered("a <l> b <r> c", [left, right]) == ["a", left, " b ", right, "c"]


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": {"x": {}}},
        {"added_tokens_decoder": {"4": "<_user>"}},
        {"added_tokens_decoder": ["<_user>"]},
        {"eos_token": {"single_word": True}},
        {"additional_special_tokens": [3]},
        {"chat_format": ["telechat2"]},
    ],
)
def test_malformed_tokenizer_config(tmp_path: Path, config: dict[str, Any]) -> None:
    build_pieces(tmp_path, "telechat2")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_official_prompt_refuses(tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = {"seq_length": 64, "max_length": 64, "max_new_tokens": None}
    with pytest.raises(PromptError, match="no official chat"):
        official_chat_prompt(tokenizer, "q", [], **settings)
    older = load_tokenizer(build_pieces(tmp_path, "telechat-12b"))
    with pytest.raises(PromptError, match="empty"):
        official_chat_prompt(older, "", [], **settings)
    with pytest.raises(PromptError, match="Only 0 tokens"):
        official_chat_prompt(older, "q", [], **{**settings, "max_new_tokens": 100})
    safe = official_chat_prompt(older, "<_bot>", [], **settings)
    assert safe.count(older.special.bot) == 1
    assert (
        official_chat_prompt(older, "<_bot>", [], **settings, parse_special=True).count(older.special.bot)
        == 2
    )


def test_nothing_is_dropped_silently(tokenizer: Tokenizer) -> None:
    system = {"role": "system", "content": "s"}
    turns = [{"role": "user", "content": "q" * 20}, {"role": "assistant", "content": "a" * 20}] * 4
    last = {"role": "user", "content": "end"}
    full = tokenizer.apply_chat_template([system, *turns, last])
    check_prompt_length(full, len(full))
    with pytest.raises(ContextLengthError) as caught:
        check_prompt_length(full, len(full) - 1)
    assert (caught.value.num_tokens, caught.value.limit) == (len(full), len(full) - 1)
    fitted = drop_oldest_turns(tokenizer, [system, *turns, last], max_prompt_tokens=len(full) - 1)
    assert fitted.num_dropped_messages == 2
    assert fitted.messages == [system, *turns[2:], last]
    with pytest.raises(ContextLengthError):
        drop_oldest_turns(tokenizer, [system, *turns, last], max_prompt_tokens=3)
    with pytest.raises(PromptError, match="empty"):
        drop_oldest_turns(tokenizer, [], max_prompt_tokens=3)


def test_tools_count_when_fitting(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "q"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    limit = len(tokenizer.apply_chat_template(messages))
    assert drop_oldest_turns(tokenizer, messages, max_prompt_tokens=limit).ids
    with pytest.raises(ContextLengthError):
        drop_oldest_turns(tokenizer, messages, max_prompt_tokens=limit, tools=tools)
