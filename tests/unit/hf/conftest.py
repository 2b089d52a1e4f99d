"""Complete tiny model folders of every chat format: random weights, a real tokenizer, a generation config."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tiny import make_tiny_model
from tests.tokenizer_samples import build_pieces

from telechat.checkpoint import save_model
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, build_model, initialise

pytest.importorskip("transformers", reason="the extra hf is not installed")

CONTEXT = 128


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    """transformers comments on every tiny folder; failures do not need that."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def make_piece_folder(folder: Path, generation: str) -> Path:
    """A folder with a sentencepiece tokenizer; `generation` is as in `build_pieces`."""
    build_pieces(folder, generation)
    config = TeleChatConfig(
        vocab_size=704,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        ffn_hidden_size=48,
        initializer_range=0.2,
        seq_length=CONTEXT,
        rope=RopeSettings(base_length=CONTEXT, training_length=CONTEXT),
    )
    model = build_model(config)
    initialise(model, seed=3)
    save_model(model, folder)
    special = {"user_token_id": 4, "bot_token_id": 5}
    if generation == "telechat-12b":
        from telechat.tokenizer import load_tokenizer

        found = load_tokenizer(folder).special
        special = {"user_token_id": found.user, "bot_token_id": found.bot}
    settings = {"max_length": CONTEXT, "do_sample": False, "temperature": 0.3, "top_k": 5, "top_p": 0.85}
    settings |= {
        "repetition_penalty": 1.01,
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **special,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def folder_12b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TeleChat1 with sentencepiece; read only."""
    return make_piece_folder(tmp_path_factory.mktemp("hf-12b"), "telechat-12b")


@pytest.fixture(scope="session")
def folder_115b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TeleChat2-115B, whose prompts begin with bos; read only."""
    return make_piece_folder(tmp_path_factory.mktemp("hf-115b"), "telechat2-115b")


@pytest.fixture(scope="session")
def folder_bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's kind: byte-level BPE and the TeleChat2 template; read only."""
    return make_tiny_model(tmp_path_factory.mktemp("hf-bpe"), seed=1)
