"""The engine's options, which every verb that loads a model takes, and sizes with units."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from telechat.cli.main import main
from telechat.cli.parser import byte_size

VERBS = {
    "chat": ["chat", "demo", "--prompt", "hello"],
    "generate": ["generate", "demo", "--input-text", "hello"],
    "serve": ["serve", "demo", "--port", "1"],
    "eval demo": ["eval", "demo", "demo"],
}


class LoadedError(Exception):
    """The model would be loaded now."""


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the verb hands to LLM."""
    seen: dict[str, Any] = {}

    def fake(model: str, **settings: Any) -> None:
        seen.update(settings)
        raise LoadedError

    monkeypatch.setattr("telechat.engine.LLM", fake)
    monkeypatch.setattr("telechat.serve.server.run_server", lambda start_engine, settings: start_engine())
    monkeypatch.setattr("telechat.engine.AsyncEngine.spawn", lambda load, tokenizer, max_pending: load())
    return seen


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--block-size 32", "block_size", 32),
        ("--num-blocks 40", "num_blocks", 40),
        ("--memory-limit 8GiB", "memory_limit", 8 << 30),
        ("--cache-memory 8GiB", "cache_memory", 8 << 30),
        ("--kv-cache-dtype int8", "kv_cache_dtype", "int8"),
        ("--kv-cache-dtype int4", "kv_cache_dtype", "int4"),
        ("--max-batch-tokens 99", "max_batch_tokens", 99),
        ("--max-num-batched-tokens 99", "max_batch_tokens", 99),
        ("--no-prefix-caching", "prefix_caching", False),
        ("--speculate prompt-lookup", "speculate", "prompt-lookup"),
        ("--num-draft-tokens 3", "num_draft_tokens", 3),
        ("--deterministic", "deterministic", True),
        ("--no-deterministic", "deterministic", False),
        ("--quantize int4", "quantize", "int4"),
        ("--group-size 64", "group_size", 64),
    ],
)
def test_each_option_arrives(loaded: dict[str, Any], verb: str, words: str, name: str, value: object) -> None:
    with pytest.raises(LoadedError):
        main([*VERBS[verb], *words.split()])
    assert loaded[name] == value


@pytest.mark.parametrize("verb", VERBS)
def test_unset_options_leave_the_engines_defaults(loaded: dict[str, Any], verb: str) -> None:
    with pytest.raises(LoadedError):
        main(VERBS[verb])
    assert set(loaded) <= {"device", "dtype", "attention", "max_model_len", "max_batch_size"}


def test_a_cache_too_small_says_what_is_needed(
    tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(tiny_model_folder), "--input-text", "hello", "--max-new-tokens", "2"]
    assert main([*words, "--num-blocks", "3"]) == 1
    assert "--num-blocks 64" in capsys.readouterr().err
    assert main([*words, "--num-blocks", "32", "--block-size", "32"]) == 0
    capsys.readouterr()
    assert main([*words, "--block-size", "20"]) == 1
    assert "16, 32, 64, 96, 128" in capsys.readouterr().err
    assert main([*words, "--memory-limit", "1MiB"]) == 1
    assert "memory_limit is 0.00 GiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("8GiB", 8 << 30),
        ("8 gib", 8 << 30),
        ("1.5KiB", 1536),
        ("2GB", 2 * 10**9),
        ("3M", 3 * 10**6),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "8iB", "-1GiB", "8 GiB free", "0", "0.1", "1e9"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        byte_size(text)
