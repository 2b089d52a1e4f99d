"""The sentencepiece vocabularies against recordings of the official wrapper, every case equal."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.shared_data import needs_shared, shared_path
from tests.tokenizer_samples import GOLDEN, golden_cases, official_folder

from telechat.tokenizer import Tokenizer, load_tokenizer

pytestmark = needs_shared

GENERATIONS = ("telechat-12b", "telechat2-115b")
CASES = golden_cases()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root: Path = tmp_path_factory.mktemp("official")
    return {name: load_tokenizer(official_folder(root / name, name)) for name in GENERATIONS}


def test_committed_copies_are_the_recordings() -> None:
    for name in ("cases.json", "chat_cases.json"):
        assert (GOLDEN / name).read_bytes() == shared_path(f"golden/tokenizer/{name}").read_bytes()


def test_special_ids(tokenizers: dict[str, Tokenizer]) -> None:
    for name, tokenizer in tokenizers.items():
        recorded = CASES["meta"]["special"][name]
        special = tokenizer.special
        assert (special.bos, special.eos, special.pad) == (recorded["bos"], recorded["eos"], recorded["pad"])
        assert tokenizer.vocab_size == recorded["vocab_size"]
        assert special.unk == 0  # the official wrapper reports 2, a mistake in its config
    assert (tokenizers["telechat-12b"].special.user, tokenizers["telechat-12b"].special.bot) == (20, 21)
    assert (tokenizers["telechat2-115b"].special.user, tokenizers["telechat2-115b"].special.bot) == (4, 5)


@pytest.mark.parametrize("name", GENERATIONS)
@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: repr(case["text"])[:30])
def test_text(tokenizers: dict[str, Tokenizer], name: str, case: dict) -> None:
    tokenizer, recorded, text = tokenizers[name], case[name], case["text"]
    assert tokenizer.encode(text, parse_special=True) == recorded["ids"]
    assert tokenizer.decode(recorded["ids"]) == recorded["decode"]
    assert tokenizer.decode(recorded["ids"], skip_special_tokens=True) == recorded["decode_skip_special"]
    plain = tokenizer.encode(text)
    assert not set(plain) & tokenizer.control_ids
    assert tokenizer.decode(plain) == text.replace("▁", " ")
    if "<" not in text:
        assert plain == recorded["ids"] == recorded["sp_ids"]


@pytest.mark.parametrize("case", CASES["decode_only"], ids=lambda case: str(case["ids"]))
def test_decode(tokenizers: dict[str, Tokenizer], case: dict) -> None:
    tokenizer = tokenizers[case["tokenizer"]]
    assert tokenizer.decode(case["ids"]) == case["decode"]
    assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decode_skip_special"]


@pytest.mark.parametrize(
    "case", CASES["prefix_decode"], ids=lambda case: f"{case['tokenizer']} {case['text']}"
)
def test_every_prefix(tokenizers: dict[str, Tokenizer], case: dict) -> None:
    tokenizer = tokenizers[case["tokenizer"]]
    stream, shown = tokenizer.stream_decoder(), ""
    for length, recorded in enumerate(case["decode_of_prefix"], start=1):
        assert tokenizer.decode(case["ids"][:length]) == recorded
        shown += stream.push(case["ids"][length - 1])
        assert shown == recorded.rstrip("\ufffd")  # what is certain, never half a character
    assert shown + stream.finish() == case["text"]
