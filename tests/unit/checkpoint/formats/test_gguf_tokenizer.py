"""The tokenizer inside a GGUF file comes out as the files of a model folder."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from tests.shared_data import needs_shared, shared_path
from tests.unit.checkpoint.formats.samples import DENSE, model_folder, with_tokenizer

from telechat.checkpoint.formats import reference
from telechat.checkpoint.formats.gguf_file import read_gguf
from telechat.checkpoint.formats.gguf_tokenizer import tokenizer_metadata
from telechat.checkpoint.formats.gguf_tokenizer_reading import tokenizer_files
from telechat.checkpoint.hub import demo_folder
from telechat.cli.main import main
from telechat.errors import TokenizerError
from telechat.tokenizer import Tokenizer, load_tokenizer

TEXTS = ["", "你好", "hello world 123", " a\n\tb  c ", "ＡＢ́ﬁ \r\n", "生抽 & 老抽?!", "日本🙂\x00"]
QUESTION = "生抽与老抽的区别？"


def convert(*words: object) -> int:
    return main(["checkpoint", "convert", *map(str, words)])


def assert_alike(found: Tokenizer, expected: Tokenizer) -> None:
    assert found.special == expected.special
    assert found.chat_format == expected.chat_format
    for text in [*TEXTS, "".join(f"{text}<_user>{text}<_end>" for text in TEXTS)]:
        for parse_special in (False, True):
            ids = expected.encode(text, parse_special=parse_special)
            assert found.encode(text, parse_special=parse_special) == ids
            assert found.decode(ids) == expected.decode(ids)


def test_byte_pairs(tmp_path: Path) -> None:
    source = with_tokenizer(model_folder(tmp_path / "model", DENSE.replace(vocab_size=4200)))
    assert convert(source, tmp_path / "one/model.gguf", "--to", "gguf", "--gguf-type", "F16") == 0
    assert convert(tmp_path / "one/model.gguf", tmp_path / "back", "--to", "hf") == 0
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert json.loads((tmp_path / "back" / name).read_text("utf-8")) == json.loads(
            (source / name).read_text("utf-8")
        )
    assert_alike(load_tokenizer(tmp_path / "back"), load_tokenizer(source))
    # From one GGUF file to another, and into a folder with a Modelfile.
    assert convert(tmp_path / "one/model.gguf", tmp_path / "again", "--to", "gguf") == 0
    again = read_gguf(tmp_path / "again/model-F16.gguf").metadata
    first = read_gguf(tmp_path / "one/model.gguf").metadata
    assert {key: value for key, value in again.items() if key != "general.name"} == {
        key: value for key, value in first.items() if key != "general.name"
    }


@needs_shared
@pytest.mark.parametrize(("name", "vocab_size"), [("telechat-12b", 120000), ("telechat2-115b", 131072)])
def test_pieces(name: str, vocab_size: int, tmp_path: Path) -> None:
    source = shared_path(f"golden/tokenizer/{name}")
    for file, content in tokenizer_files(tokenizer_metadata(source, vocab_size)).items():
        (tmp_path / file).write_bytes(content)
    assert_alike(load_tokenizer(tmp_path), load_tokenizer(source))


def test_files_of_others_have_no_keys_of_ours(tmp_path: Path) -> None:
    source = with_tokenizer(model_folder(tmp_path / "model", DENSE.replace(vocab_size=4096)))
    assert convert(source, tmp_path / "model.gguf", "--to", "gguf") == 0
    metadata = dict(read_gguf(tmp_path / "model.gguf").metadata)
    files = tokenizer_files({key: value for key, value in metadata.items() if "telechat." not in key})
    (tmp_path / "back").mkdir()
    for file, content in files.items():
        (tmp_path / "back" / file).write_bytes(content)
    assert_alike(load_tokenizer(tmp_path / "back"), load_tokenizer(source))
    for key, value, message in (
        ("pre", "tekken", "cuts text by the rule 'tekken'"),
        ("model", "bert", "of the kind 'bert'"),
    ):
        with pytest.raises(TokenizerError, match=message):
            tokenizer_files({**metadata, f"tokenizer.ggml.{key}": value})


def test_a_single_file_chats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "cache_folder", lambda: tmp_path / "cache")
    assert convert("demo", tmp_path / "one/demo.gguf", "--to", "gguf") == 0
    capsys.readouterr()
    words = ["generate", "--input-text", QUESTION, "--max-new-tokens", "12"]
    assert main([*words, "demo"]) == 0
    expected = capsys.readouterr().out
    assert main([*words, str(tmp_path / "one/demo.gguf")]) == 0
    assert capsys.readouterr().out == expected


def test_a_tokenizer_beside_the_file_wins(tmp_path: Path) -> None:
    assert convert("demo", tmp_path / "demo.gguf", "--to", "gguf", "--gguf-type", "Q8_0") == 0
    shutil.copy(demo_folder() / "tokenizer.json", tmp_path)
    changed = (demo_folder() / "tokenizer_config.json").read_text("utf-8").replace("left", "right")
    (tmp_path / "tokenizer_config.json").write_text(changed, "utf-8")
    assert convert(tmp_path / "demo.gguf", tmp_path / "back", "--to", "hf") == 0
    assert (tmp_path / "back/tokenizer_config.json").read_text("utf-8") == changed


def test_one_that_cannot_be_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = with_tokenizer(model_folder(tmp_path / "model", DENSE.replace(vocab_size=4096)))
    assert convert(source, tmp_path / "one/model.gguf", "--to", "gguf") == 0
    path = tmp_path / "one/model.gguf"
    path.write_bytes(path.read_bytes().replace(b"qwen2", b"qwen9"))
    with caplog.at_level(logging.WARNING):
        assert convert(path, tmp_path / "back", "--to", "hf") == 0
    assert "cuts text by the rule 'qwen9'" in caplog.text
    assert "beside it" in caplog.text
    assert not (tmp_path / "back/tokenizer.json").exists()
