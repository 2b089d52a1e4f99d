"""What must hold for any text and any ids.

On small vocabularies of every kind, and on the official ones where they are available.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shared_data import SHARED
from tests.tokenizer_samples import build_byte_pairs, build_pieces, official_folder

from telechat.tokenizer import Tokenizer, load_tokenizer
from telechat.tokenizer.piece_decoder import PieceRun
from telechat.tokenizer.train import cut_han_runs
from telechat.tokenizer.truncation import drop_oldest_turns

CONTROL_STRINGS = (
    "<_start>",
    "<_end>",
    "<_pad>",
    "<_user>",
    "<_bot>",
    "<_system>",
    "<_observation>",
    "<_unk>",
    "<unk>",
    "<reserve1>",
    "<reserve2>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<0x00>",
)
FRAGMENTS = (
    "<",
    ">",
    "_",
    "<_",
    "user>",
    "/",
    "\x00",
    "\x00<_user>",
    " ",
    "\n",
    "▁",
    "你好",
    "😀",
    "é",
    "1",
    "龘",
)

text = st.text(st.characters(exclude_categories=["Cs"]))
# Plain random text would hardly ever contain a control string; this mixes whole and broken ones into it.
hostile_text = st.lists(st.one_of(st.sampled_from(CONTROL_STRINGS + FRAGMENTS), text)).map("".join)

MAKERS: dict[str, Callable[[Path], Path]] = {
    "byte pairs": build_byte_pairs,
    "byte pairs, tags registered nowhere": lambda folder: _without_special_flags(build_byte_pairs(folder)),
    "pieces like 12B": lambda folder: build_pieces(folder, "telechat-12b"),
    "pieces like TeleChat2-115B": lambda folder: build_pieces(folder, "telechat2-115b"),
    "pieces like TeleChat2": lambda folder: build_pieces(folder, "telechat2"),
    "pieces with tool tags in control slots": lambda folder: _with_tool_tags(
        build_pieces(folder, "telechat2")
    ),
}
if SHARED is not None:
    MAKERS["official 12B"] = lambda folder: official_folder(folder, "telechat-12b")
    MAKERS["official TeleChat2"] = lambda folder: official_folder(folder, "telechat2")


def _without_special_flags(folder: Path) -> Path:
    """As some tools write it: no token marked special, whole words looked up before merging."""
    path = folder / "tokenizer.json"
    definition = json.loads(path.read_text(encoding="utf-8"))
    definition["added_tokens"] = []
    definition["model"]["ignore_merges"] = True
    definition["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    path.write_text(json.dumps(definition), encoding="utf-8")
    return folder


def _with_tool_tags(folder: Path) -> Path:
    """`<tool_call>` in the slot of `<_sep>`, its end tag behind the last piece."""
    added = {
        "8": {"content": "<tool_call>", "special": True},
        "700": {"content": "</tool_call>", "special": False},
    }
    for token_id, name in enumerate(
        ("<_start>", "<_end>", "<_pad>", "<_user>", "<_bot>", "<_system>"), start=1
    ):
        added[str(token_id)] = {"content": name, "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return folder


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    made = load_tokenizer(MAKERS[request.param](folder))
    shutil.rmtree(folder)
    return made


def is_piece_model(tokenizer: Tokenizer) -> bool:
    return hasattr(tokenizer.vocabulary, "_official")


@settings(max_examples=150, deadline=None)
@given(hostile_text)
def test_text_never_becomes_a_control_token_and_comes_back(tokenizer: Tokenizer, hostile: str) -> None:
    ids = tokenizer.encode(hostile)
    assert not set(ids) & tokenizer.control_ids
    expected = hostile.replace("▁", " ") if is_piece_model(tokenizer) else hostile
    assert tokenizer.decode(ids) == expected
    assert tokenizer.decode(ids, skip_special_tokens=True) == expected
    assert tokenizer.encode_batch([hostile, "x"]) == [ids, tokenizer.encode("x")]


@settings(max_examples=60, deadline=None)
@given(hostile_text.filter(bool), hostile_text, hostile_text)
def test_conversations_hold_only_their_own_control_tokens(
    tokenizer: Tokenizer, question: str, answer: str, other: str
) -> None:
    def control_ids(question: str, answer: str, other: str) -> list[int]:
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": question},
        ]
        tools = None
        if tokenizer.supports_system:
            messages.insert(0, {"role": "system", "content": other})
        if tokenizer.supports_tools:
            tools = [{"type": "function", "function": {"name": "f", "description": other}}]
            call = {"type": "function", "function": {"name": other or "f", "arguments": {other: other}}}
            messages += [
                {"role": "assistant", "content": answer, "tool_calls": [call]},
                {"role": "tool", "content": other},
            ]
        ids = tokenizer.apply_chat_template(messages, tools)
        return [token_id for token_id in ids if token_id in tokenizer.control_ids]

    assert control_ids(question, answer, other) == control_ids("q", "a", "o")


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans())
def test_stream_equals_decode(tokenizer: Tokenizer, data: st.DataObject, skip: bool) -> None:
    ordinary = st.integers(0, tokenizer.vocab_size - 1)
    low = st.integers(0, min(400, tokenizer.vocab_size - 1))  # control tokens and bytes live there
    ids = data.draw(st.lists(st.one_of(ordinary, low)))
    if is_piece_model(tokenizer) and not skip:
        # The official space before a run that a special token ends cannot be streamed.
        ids = [token_id for token_id in ids if token_id not in tokenizer.vocabulary.skipped_ids]
    stream = tokenizer.stream_decoder(skip_special_tokens=skip)
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join([*pieces, stream.finish()]) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(hostile_text)
def test_stream_never_shows_half_a_character(tokenizer: Tokenizer, hostile: str) -> None:
    expected = hostile.replace("▁", " ") if is_piece_model(tokenizer) else hostile
    stream, shown = tokenizer.stream_decoder(), ""
    for token_id in tokenizer.encode(hostile):
        shown += stream.push(token_id)
        assert expected.startswith(shown)
    assert stream.finish() == "" and shown == expected


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_piece_run_equals_sentencepiece(tokenizer: Tokenizer, data: st.DataObject) -> None:
    if not is_piece_model(tokenizer):
        pytest.skip("not a sentencepiece vocabulary")
    processor = tokenizer.vocabulary._official
    any_piece = st.integers(0, processor.get_piece_size() - 1)
    byte_piece = st.integers(0, 255).map(lambda byte: processor.piece_to_id(f"<0x{byte:02X}>"))
    # Bytes that begin or continue characters, so that sequences are often almost right.
    likely = st.sampled_from([0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0xED, 0xE0, 0xF4, 0x41])
    likely_piece = likely.map(lambda byte: processor.piece_to_id(f"<0x{byte:02X}>"))
    ids = data.draw(st.lists(st.one_of(any_piece, byte_piece, likely_piece, st.just(0))))
    run = PieceRun(processor)
    assert "".join([*(run.push(token_id) for token_id in ids), run.finish()]) == processor.decode(ids)


@given(st.lists(st.one_of(text, st.text("天地玄黄宇宙洪荒，a"))), st.integers(1, 4), st.integers(0, 9))
def test_cutting_han_runs_loses_nothing(texts: list[str], max_han_run: int, seed: int) -> None:
    pieces = list(cut_han_runs(texts, max_han_run=max_han_run, seed=seed))
    assert "".join(pieces) == "".join(texts)
    assert pieces == list(cut_han_runs(texts, max_han_run=max_han_run, seed=seed))
    for piece in pieces:
        num_han = sum("\u4e00" <= char <= "\u9fff" for char in piece)
        assert num_han <= max_han_run
        assert num_han in (0, len(piece)) or not set("，a") & set(piece)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("天地 ab", min_size=1, max_size=12), min_size=1, max_size=8), st.integers(0, 40))
def test_dropped_turns(tokenizer: Tokenizer, contents: list[str], num_spare: int) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user" if position % 2 == 0 else "assistant", "content": content}
        for position, content in enumerate(contents)
    ]
    last_turn = messages[len(messages) - 1 - (len(messages) - 1) % 2 :]
    limit = len(tokenizer.apply_chat_template(last_turn)) + num_spare
    fitted = drop_oldest_turns(tokenizer, messages, max_prompt_tokens=limit)
    assert len(fitted.ids) <= limit
    assert fitted.messages == messages[fitted.num_dropped_messages :]
    assert fitted.messages[0]["role"] == "user"
    assert fitted.ids == tokenizer.apply_chat_template(fitted.messages)
    if fitted.num_dropped_messages:
        one_more = messages[fitted.num_dropped_messages - 2 :]
        assert len(tokenizer.apply_chat_template(one_more)) > limit
