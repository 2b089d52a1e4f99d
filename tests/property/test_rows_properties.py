"""Whatever JSON a row holds, it is encoded or named bad: never a traceback, never a forged turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from telechat.checkpoint import resolve_model
from telechat.data.encoding import encode_record, preference_ids
from telechat.data.loss_mask import answer_spans
from telechat.data.recognise import FAMILIES, recognise_row
from telechat.data.records import Preference
from telechat.data.rows import RowProblem, read_rows
from telechat.errors import ConfigError
from telechat.tokenizer import Tokenizer, load_tokenizer

MARKS = ("<_user>", "<_bot>", "<_end>", "<_system>", "<tool_call>", "</tool_call>", "<tool_response>\n")
texts = st.lists(st.sampled_from([*MARKS, "你好", " ", "a", "\n", "\ud800", '{"a": 1}']), max_size=4).map(
    "".join
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-300, 300) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=6,
)
turns = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "bot", "tool", "x"]) | values,
        "from": st.sampled_from(["human", "gpt", "function_call", "observation"]) | values,
        "content": texts | values,
        "value": texts | values,
        "tool_calls": values,
        "weight": values,
    },
)
some_turns = st.lists(turns, max_size=4)
numbers = st.lists(st.integers(-101, 700))
FIELDS = {
    **dict.fromkeys(("input", "output", "instruction", "system", "text", "data"), texts | values),
    **dict.fromkeys(("messages", "conversations", "conversation", "dialog"), some_turns | values),
    **dict.fromkeys(("prompt", "chosen", "rejected", "completion"), some_turns | texts | values),
    **dict.fromkeys(("input_ids", "labels", "loss_mask", "weights"), numbers | values),
    **dict.fromkeys(("tools", "label", "history", "tool", "multiturn"), values),
}
rows = st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=5, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names})
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(resolve_model("demo"))


@given(rows)
@example({"system": "", "dialog": [{"role": []}]})
@example({"messages": [{"role": {}, "content": "x"}]})
@example({"conversations": [{"from": [], "value": "x"}]})
def test_any_row_is_read_or_named_bad(tokenizer: Tokenizer, row: dict[str, Any]) -> None:
    for family in FAMILIES:
        try:
            record = family.read(row)
            if isinstance(record, Preference):
                chosen, rejected, length = preference_ids(record, tokenizer)
                assert 0 < length < len(chosen.ids)
                assert rejected is None or rejected.ids[:length] == chosen.ids[:length]
            else:
                encoded = encode_record(record, tokenizer, "answers")
                assert len(encoded.ids) == len(encoded.learnt)
        except RowProblem as problem:
            assert str(problem)
    recognise_row(row)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_a_conversation_has_exactly_its_own_turns(tokenizer: Tokenizer, pairs: list[tuple[str, str]]) -> None:
    messages = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    found = recognise_row({"messages": messages})
    assert found is not None
    try:
        encoded = encode_record(found.family.read({"messages": messages}), tokenizer, "answers")
    except RowProblem:
        assert any(not question or "\ud800" in question + answer for question, answer in pairs)
        return
    spans = answer_spans(encoded.ids, tokenizer.special)
    assert len(spans) == len(pairs) == list(encoded.ids).count(tokenizer.special.user)
    for (start, end), (_, answer) in zip(spans, pairs, strict=True):
        assert tokenizer.decode(encoded.ids[start + 1 : end - 1]) == answer
        assert all(encoded.learnt[start + 1 : end]) and not encoded.learnt[start]


@given(st.binary(max_size=60) | rows.map(lambda row: json.dumps(row).encode()))
def test_any_bytes_are_rows_or_an_error_for_the_user(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    try:
        found = list(read_rows(path))
    except ConfigError as error:
        assert str(path) in error.message
    else:
        assert all(row.line > 0 for row in found)
