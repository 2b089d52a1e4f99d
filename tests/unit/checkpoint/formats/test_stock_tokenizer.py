"""What stock transformers makes of the tokenizer in an exported folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shared_data import needs_shared, shared_path
from transformers import AutoTokenizer

from telechat.checkpoint.formats.hf import companion_files
from telechat.checkpoint.formats.stock_tokenizer import stock_tokenizer
from telechat.checkpoint.hub import demo_folder
from telechat.tokenizer import load_tokenizer
from telechat.tokenizer.jinja_template import jinja_of

# Of an official folder: code of its own, tokens that are none beside text, tags in slots of control tokens.
OFFICIAL = {
    "tokenizer_class": "TelechatTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_telechat.TelechatTokenizer", None]},
    "unk_token": "<_end>",
    "eos_token": {"content": "<_end>", "single_word": True},
    "added_tokens_decoder": {
        "2": {"content": "<_end>", "single_word": True, "special": True},
        "9": {"content": "<tool_call>", "special": True},
        "10": {"content": "</tool_call>", "special": True},
    },
}
MESSAGES = [
    {"role": "user", "content": "你是谁？"},
    {"role": "assistant", "content": "我是 TeleChat。"},
    {"role": "user", "content": " 12_345\n"},
]
# What the models treat in a way of its own: digits, runs of `_`, line ends, spaces, bytes without a token.
TEXTS = st.text(st.sampled_from("019__ \n\tab中文🙂\u0301,-ＡéЖ"), max_size=40)


def exported(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in {**files, **stock_tokenizer(files)}.items():
        (folder / name).write_bytes(content)


@needs_shared
@pytest.mark.parametrize(("name", "config"), [("telechat-12b", None), ("telechat2-115b", OFFICIAL)])
def test_pieces(name: str, config: dict | None, tmp_path: Path) -> None:
    files = {"tokenizer.model": shared_path(f"golden/tokenizer/{name}/tokenizer.model").read_bytes()}
    if config is not None:
        files["tokenizer_config.json"] = json.dumps(config).encode()
    exported(tmp_path, files)
    stock, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert (stock.bos_token_id, stock.eos_token_id, stock.pad_token_id, stock.unk_token_id) == (1, 2, 3, 0)

    @settings(max_examples=40, deadline=None)
    @given(TEXTS)
    def check(text: str) -> None:
        ids = ours.encode(text)
        assert stock(text)["input_ids"] == ids
        assert stock.decode(ids) == ours.decode(ids)

    check()
    prompt = stock.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert prompt == ours.apply_chat_template(MESSAGES)
    if config is not None:
        assert ours.special.tool_call == 9
        assert stock("<tool_call>")["input_ids"] == [9]


@needs_shared
def test_the_chat_format_is_kept(tmp_path: Path) -> None:
    """A template alone would turn the 115B's format into that of its sisters."""
    files = {
        "tokenizer.model": shared_path("golden/tokenizer/telechat2-115b/tokenizer.model").read_bytes(),
        "generation_config.json": json.dumps({"user_token_id": 4, "bot_token_id": 5}).encode(),
    }
    exported(tmp_path, files)
    assert load_tokenizer(tmp_path).chat_format.name == "telechat2-115b"
    template = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    assert template == jinja_of("telechat2-115b")


def test_a_tokenizer_that_cannot_be_read_is_copied(caplog: pytest.LogCaptureFixture) -> None:
    assert stock_tokenizer({"config.json": b"{}"}) == {}
    assert stock_tokenizer({"tokenizer.model": b"rubbish", "tokenizer_config.json": b"{}"}) == {}
    assert "copied as it is" in caplog.text


def test_byte_pairs_gain_no_second_file() -> None:
    made = stock_tokenizer(companion_files(demo_folder()))
    assert made.keys() == {"tokenizer_config.json"}
