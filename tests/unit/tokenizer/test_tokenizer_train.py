"""Training byte-level vocabularies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tokenizer_samples import SAMPLE_VOCAB_SIZE, build_byte_pairs, sample_texts
from tokenizers import Tokenizer as LibraryTokenizer

from telechat.errors import ConfigError, TokenizerError
from telechat.tokenizer import load_tokenizer
from telechat.tokenizer.bpe import byte_alphabet
from telechat.tokenizer.train import CONTROL_TOKENS, cut_han_runs, train_tokenizer

CLAUSE = "生抽与老抽的区别"


def test_control_tokens_come_first_in_order(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(build_byte_pairs(tmp_path))
    assert [tokenizer.id_to_token(token_id) for token_id in range(12)] == list(CONTROL_TOKENS)
    special = tokenizer.special
    assert (special.unk, special.bos, special.eos, special.pad, special.user, special.bot) == (
        0,
        1,
        2,
        3,
        4,
        5,
    )
    assert (special.system, special.observation, special.tool_call, special.tool_response_end) == (
        6,
        7,
        8,
        11,
    )
    assert tokenizer.vocab_size == SAMPLE_VOCAB_SIZE
    assert tokenizer.chat_format.name == "telechat2"


def test_same_seed_same_files(tmp_path: Path) -> None:
    texts = [*sample_texts(), CLAUSE * 20]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_tokenizer(iter(texts), vocab_size=500, out_folder=tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "tokenizer.json").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(("max_han_run", "vocab_size"), [(1, 282), (2, 289), (8, 300)])
def test_no_entry_is_longer_than_a_han_run(tmp_path: Path, max_han_run: int, vocab_size: int) -> None:
    train_tokenizer([CLAUSE] * 99, vocab_size=vocab_size, out_folder=tmp_path, max_han_run=max_han_run)
    tokenizer = load_tokenizer(tmp_path)
    entries = [tokenizer.decode([token_id]) for token_id in range(len(CONTROL_TOKENS), tokenizer.vocab_size)]
    assert max(len(entry) for entry in entries if "\ufffd" not in entry) == max_han_run


def test_only_training_text_is_cut(tmp_path: Path) -> None:
    assert list(cut_han_runs(["甲乙，丙a丁"], max_han_run=1, seed=0)) == ["甲", "乙", "，", "丙", "a", "丁"]
    tokenizer = load_tokenizer(build_byte_pairs(tmp_path))
    assert tokenizer.decode(tokenizer.encode(CLAUSE * 9)) == CLAUSE * 9


def test_text_is_split_as_stock_llama_cpp_splits_qwen2(tmp_path: Path) -> None:
    path = build_byte_pairs(tmp_path) / "tokenizer.json"
    splitter = LibraryTokenizer.from_file(str(path)).pre_tokenizer
    text = "Don't stop 2024年,it'S  fine\r\n\n  x_1 <_user>"
    alphabet = byte_alphabet()
    pieces = [
        bytes(alphabet[char] for char in piece).decode() for piece, _ in splitter.pre_tokenize_str(text)
    ]
    assert pieces == [
        *("Don", "'t", " stop", " ", "2", "0", "2", "4", "年", ",it", "'S", " ", " fine", "\r\n\n"),
        *(" ", " x", "_", "1", " <_", "user", ">"),
    ]


def test_too_small_a_vocabulary_and_too_little_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="268"):
        train_tokenizer(["a"], vocab_size=100, out_folder=tmp_path)
    with pytest.raises(ConfigError, match="max_han_run is 0"):
        train_tokenizer(["a"], vocab_size=300, out_folder=tmp_path, max_han_run=0)
    with pytest.raises(TokenizerError, match="5000 were asked for"):
        train_tokenizer(["a b a b"], vocab_size=5000, out_folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_text_cannot_teach_control_strings(tmp_path: Path) -> None:
    train_tokenizer(["<_user><tool_call>"] * 500, vocab_size=275, out_folder=tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert not set(tokenizer.encode("<_user><tool_call>")) & tokenizer.control_ids


def test_tool_tags_are_not_special_to_other_programs(tmp_path: Path) -> None:
    added = json.loads((build_byte_pairs(tmp_path) / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    assert {token["content"]: token["special"] for token in added} == {
        name: not name.strip("</").startswith("tool_") for name in CONTROL_TOKENS
    }
