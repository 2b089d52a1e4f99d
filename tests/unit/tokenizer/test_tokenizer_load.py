"""Which tokenizer a folder holds, and errors for folders that hold none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.tokenizer_samples import build_byte_pairs, build_pieces

from telechat.errors import ConfigError, TokenizerError
from telechat.tokenizer import check_fits, load_tokenizer
from telechat.tokenizer.detect import detect_chat_format
from telechat.tokenizer.load import copy_tokenizer_files

OBSERVATION = {"<_observation>": 7}
TURN_IDS = {"user_token_id": 4, "bot_token_id": 5}


@pytest.mark.parametrize(
    ("tokenizer_config", "generation_config", "vocabulary", "expected"),
    [
        ({"chat_format": "telechat1"}, TURN_IDS, OBSERVATION, "telechat1"),
        ({"chat_template": "x"}, TURN_IDS, {}, "telechat1"),
        ({"chat_template": "x"}, TURN_IDS, OBSERVATION, "telechat2"),
        ({"added_tokens_decoder": {"4": {"content": "<_user>"}}}, TURN_IDS, OBSERVATION, "telechat2"),
        ({"added_tokens_decoder": {"2": {"content": "<_end>"}}}, TURN_IDS, OBSERVATION, "telechat2-115b"),
        ({}, TURN_IDS, OBSERVATION, "telechat2-115b"),
        ({}, {"user_token_id": 4}, OBSERVATION, "telechat2"),
        ({}, {}, OBSERVATION, "telechat2"),
    ],
)
def test_chat_format_rules(
    tokenizer_config: dict[str, Any],
    generation_config: dict[str, Any],
    vocabulary: dict[str, int],
    expected: str,
) -> None:
    assert detect_chat_format(tokenizer_config, generation_config, vocabulary.get) == expected


@pytest.mark.parametrize(
    ("generation", "expected"),
    [("telechat-12b", "telechat1"), ("telechat2-115b", "telechat2-115b"), ("telechat2", "telechat2")],
)
def test_piece_folders(tmp_path: Path, generation: str, expected: str) -> None:
    tokenizer = load_tokenizer(build_pieces(tmp_path, generation))
    assert tokenizer.chat_format.name == expected
    assert tokenizer.supports_system == tokenizer.supports_tools == (expected == "telechat2")
    assert tokenizer.special.bos == 1 and tokenizer.special.eos == 2 and tokenizer.special.pad == 3


def test_format_can_be_named(tmp_path: Path) -> None:
    build_pieces(tmp_path, "telechat2")
    assert load_tokenizer(tmp_path, chat_format="telechat2-115b").chat_format.name == "telechat2-115b"
    with pytest.raises(ConfigError, match="chatml"):
        load_tokenizer(tmp_path, chat_format="chatml")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_format": "chatml"}')
    with pytest.raises(TokenizerError, match="chatml"):
        load_tokenizer(tmp_path)


def seven_b_folder(folder: Path, generation_config: dict[str, Any] | None) -> Path:
    """Like the 7B: `<pad>`, no system token, the user token known only to the generation config.

    Its `config.json` is as wrong as the 7B's.
    """
    path = build_byte_pairs(folder) / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    renamed = {"<_pad>": "<pad>", "<_system>": "<extra6>", "<_observation>": "<extra7>", "<_user>": "<asker>"}
    for name, other in renamed.items():
        text = text.replace(json.dumps(name), json.dumps(other))
    path.write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").unlink()
    wrong = {"bos_token_id": 100, "eos_token_id": 101, "pad_token_id": 102}
    (folder / "config.json").write_text(json.dumps(wrong))
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder


def test_seven_b_takes_ids_from_its_generation_config(tmp_path: Path) -> None:
    ids = {"user_token_id": 4, "bot_token_id": 5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    tokenizer = load_tokenizer(seven_b_folder(tmp_path, ids))
    special = tokenizer.special
    assert tokenizer.chat_format.name == "telechat1"
    assert (special.bos, special.eos, special.pad, special.user, special.bot) == (1, 2, 3, 4, 5)
    assert special.system is None
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "<asker>"}])
    assert prompt[0] == 4 and prompt[-1] == 5 and 4 not in prompt[1:]
    assert tokenizer.decode([4, *tokenizer.encode("x")], skip_special_tokens=True) == "x"


def test_missing_control_tokens_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="<_user>"):
        load_tokenizer(seven_b_folder(tmp_path, None))


@pytest.mark.parametrize("token_id", [500, -1, "4"])
def test_generation_config_ids_must_exist(tmp_path: Path, token_id: Any) -> None:
    with pytest.raises(TokenizerError, match="user_token_id"):
        load_tokenizer(seven_b_folder(tmp_path, {"user_token_id": token_id}))


def test_a_list_of_stop_ids_does_not_replace_the_end_token(tmp_path: Path) -> None:
    folder = seven_b_folder(tmp_path, {"user_token_id": 4, "eos_token_id": [7, 2]})
    assert load_tokenizer(folder).special.eos == 2


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"neither tokenizer.model nor tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not valid JSON"),
        ('{"model": {"vo', "not valid JSON"),
        ("[]", "no section 'model'"),
        ('{"model": {}, "added_tokens": [{"id": 3}]}', "malformed added tokens"),
        ('{"model": {"type": "Unigram", "vocab": []}}', "Unigram"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}}, "decoder": {"type": "Metaspace"}}', "Metaspace"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}}, "decoder": {"type": "ByteLevel"}}', "cannot be read"),
    ],
)
def test_damaged_tokenizer_json(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert says in caught.value.message and str(tmp_path) in caught.value.message and caught.value.hint


@pytest.mark.parametrize("damage", ["truncated", "pointer", "empty"])
def test_damaged_tokenizer_model(tmp_path: Path, damage: str) -> None:
    path = build_pieces(tmp_path, "telechat2") / "tokenizer.model"
    content = {"truncated": path.read_bytes()[:5000], "pointer": b"version https://git-lfs", "empty": b""}
    path.write_bytes(content[damage])
    with pytest.raises(TokenizerError, match=r"tokenizer\.model") as caught:
        load_tokenizer(tmp_path)
    assert "again" in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_tokenizer_config(tmp_path: Path, content: str) -> None:
    build_byte_pairs(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(TokenizerError, match="tokenizer_config"):
        load_tokenizer(tmp_path)


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    build_byte_pairs(tmp_path)
    (tmp_path / "tokenization_telechat.py").write_text("raise SystemExit('executed')")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoTokenizer": ["tokenization_telechat.TelechatTokenizer", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).encode("a")


def test_check_fits(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(build_byte_pairs(tmp_path))
    check_fits(tokenizer, 500)
    check_fits(tokenizer, 512)
    with pytest.raises(TokenizerError) as caught:
        check_fits(tokenizer, 499)
    assert "500 tokens" in caught.value.message and "499" in caught.value.message


def test_copied_files_load_the_same(tmp_path: Path) -> None:
    original = load_tokenizer(build_pieces(tmp_path / "a", "telechat-12b"))
    copies = copy_tokenizer_files(original, tmp_path / "b")
    assert [path.name for path in copies] == ["tokenizer.model", "tokenizer_config.json"]
    assert load_tokenizer(tmp_path / "b").encode("<_end> a", parse_special=True)[0] == 2


def test_importing_loads_neither_torch_nor_the_libraries() -> None:
    program = (
        "import sys, telechat.tokenizer, telechat.tokenizer.train\n"
        "print({'torch', 'tokenizers', 'sentencepiece', 'transformers'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
