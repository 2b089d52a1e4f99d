"""Rows to calibrate with: every form they may have, in the chat format; what cannot be used is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from telechat import load_tokenizer
from telechat.checkpoint.hub import demo_folder
from telechat.errors import ConfigError
from telechat.quant.calibration import Calibration, from_examples, from_files, from_texts
from telechat.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(demo_folder())


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_conversations_are_in_the_chat_format(tmp_path: Path, tokenizer: Tokenizer) -> None:
    expected = tuple(tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False))
    rows = from_files(
        [jsonl(tmp_path / "a.jsonl", {"messages": MESSAGES}, {"input": "你好", "output": "你好！"})],
        tokenizer,
    ).rows
    assert rows[0] == expected
    assert tokenizer.special.user in rows[1] and tokenizer.special.bot in rows[1]


def test_texts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Control tokens of a prepared text are control tokens; in a document they are letters."""
    prepared = jsonl(tmp_path / "a.jsonl", {"id": 1, "inputs_pretokenized": "<_user>hi<_bot>"})
    [row] = from_files([prepared], tokenizer).rows
    assert row[0] == tokenizer.special.user and row[-1] == tokenizer.special.bot
    (tmp_path / "b.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    assert len(from_files([tmp_path / "b.txt"], tokenizer).rows) == 2
    [document] = from_files([jsonl(tmp_path / "c.jsonl", {"text": "<_user>"})], tokenizer).rows
    assert tokenizer.special.user not in document


def test_rows_are_taken_in_turn_and_cut(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("aa bb cc dd ee\n" * 5, encoding="utf-8")
    (tmp_path / "b.txt").write_text("zz\n", encoding="utf-8")
    rows = from_files([tmp_path / "a.txt", tmp_path / "b.txt"], tokenizer, num_rows=3, length=2).rows
    assert len(rows) == 3 and all(len(row) <= 2 for row in rows)
    assert rows[1] == tuple(tokenizer.encode("zz"))[:2]


def test_examples_and_texts(tokenizer: Tokenizer) -> None:
    examples = [[1, 2], {"input_ids": [3, 4], "attention_mask": [1, 1]}, torch.tensor([[5, 6]])]
    assert from_examples(examples).rows == ((1, 2), (3, 4), (5, 6))
    rows = from_texts(["<_user>hi", MESSAGES], tokenizer).rows
    assert rows[0][0] == tokenizer.special.user
    assert rows[1] == tuple(tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False))


def test_what_cannot_be_used(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="no calibration rows"):
        from_files([jsonl(tmp_path / "empty.jsonl")], tokenizer)
    with pytest.raises(ConfigError, match=r"bad.jsonl line 2: it is not JSON"):
        (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
        from_files([tmp_path / "bad.jsonl"], tokenizer)
    with pytest.raises(ConfigError, match=r"odd.jsonl line 1: it has the fields colour, which"):
        from_files([jsonl(tmp_path / "odd.jsonl", {"colour": 3})], tokenizer)
    with pytest.raises(ConfigError, match="Cannot read"):
        from_files([tmp_path / "missing.txt"], tokenizer)
    with pytest.raises(ConfigError, match="calib_rows is 0"):
        from_files([tmp_path / "bad.jsonl"], tokenizer, num_rows=0)
    with pytest.raises(ConfigError, match="Example 1 holds no list"):
        from_examples(["text"])
    with pytest.raises(ConfigError, match="Text 1 is empty"):
        from_texts([""], tokenizer)
    with pytest.raises(ConfigError, match="the token 999; the model has 100"):
        Calibration(((999,),)).check_fits(100)


def test_few_tokens_are_said_to_be_few(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Calibration(((1, 2, 3),)).warn_if_few(4)
    assert "3 calibration tokens for layers of up to 4 inputs are too few" in caplog.text
    caplog.clear()
    Calibration(((1, 2, 3, 4),)).warn_if_few(4)
    assert not caplog.text
