"""Small tokenizer folders for tests: trained here in a second, laid out like the official ones.

`build_byte_pairs` makes what `telechat tokenizer train` makes; `build_pieces` makes sentencepiece models with
the 12B's user-defined or TeleChat2's control pieces. `official_folder` sets up the real models where they are
available.
"""

from __future__ import annotations

import io
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from tests.shared_data import shared_path

from telechat.tokenizer.train import train_tokenizer

GOLDEN = Path(__file__).parent / "golden" / "data" / "tokenizer"
SAMPLE_VOCAB_SIZE = 500

GENERATION_CONFIGS: dict[str, dict[str, Any]] = {
    "telechat-12b": {
        "max_length": 8192,
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "user_token_id": 20,
        "bot_token_id": 21,
    },
    "telechat2-115b": {
        "max_new_tokens": 4096,
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "user_token_id": 4,
        "bot_token_id": 5,
    },
}


@cache
def golden_cases() -> dict[str, Any]:
    """`cases.json`: what the official wrapper makes of single texts."""
    return json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))


@cache
def golden_chats() -> dict[str, Any]:
    """`chat_cases.json`: what the official code makes of conversations."""
    return json.loads((GOLDEN / "chat_cases.json").read_text(encoding="utf-8"))


def sample_texts() -> list[str]:
    """Some Chinese, English, code and emoji to train on."""
    texts = [case["text"] for case in golden_cases()["cases"]]
    return texts + [case["prompt"] for case in golden_chats()["template"]] * 2


def build_byte_pairs(folder: Path) -> Path:
    """A byte-level BPE folder of the demo model's kind."""
    return train_tokenizer(sample_texts(), vocab_size=SAMPLE_VOCAB_SIZE, out_folder=folder)


def build_pieces(folder: Path, generation: str) -> Path:
    """A small sentencepiece folder; `generation` is `telechat-12b`, `telechat2-115b` or `telechat2`."""
    import sentencepiece

    model = io.BytesIO()
    turns = ["<_user>", "<_bot>", "<_system>"]
    reserved = [f"<reserve{number}>" for number in range(1, 4)]
    is_12b = generation == "telechat-12b"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in sample_texts() for line in text.splitlines() if line]),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        character_coverage=0.98,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        unk_piece="<_unk>",
        bos_piece="<_start>",
        eos_piece="<_end>",
        pad_piece="<_pad>",
        control_symbols=[] if is_12b else [*turns, "<_observation>", "<_sep>"],
        user_defined_symbols=["_", "\n", "\t", *(turns if is_12b else []), *reserved],
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    if generation != "telechat2":
        _write_official_config(folder, generation)
    if generation == "telechat2-115b":
        ids = {"user_token_id": 4, "bot_token_id": 5}
        (folder / "generation_config.json").write_text(json.dumps(ids))
    return folder


def official_folder(folder: Path, generation: str) -> Path:
    """The real `tokenizer.model` with the released configs; `telechat2` is the 115B's model without configs.

    Skips the calling test where the models are not available.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = "telechat2-115b" if generation == "telechat2" else generation
    shutil.copyfile(shared_path(f"golden/tokenizer/{name}/tokenizer.model"), folder / "tokenizer.model")
    if generation != "telechat2":
        _write_official_config(folder, generation)
        config = json.dumps(GENERATION_CONFIGS[generation])
        (folder / "generation_config.json").write_text(config)
    return folder


def _write_official_config(folder: Path, generation: str) -> None:
    config = golden_cases()["meta"]["tokenizer_config"][generation]
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
