"""Samples name the rows that they were made of, in every mode, and after they were kept in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from telechat.data.dataset import load_samples
from telechat.data.official.pretraining import group, members
from telechat.data.official.settings import OfficialSettings
from telechat.data.origins import OriginsBuilder
from telechat.data.preferences import load_preferences
from telechat.data.rows import Row
from telechat.data.samples import SampleSet
from telechat.tokenizer import Tokenizer

WriteRows = Callable[..., Path]


def chat(answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]}


def rows_by_text(samples: SampleSet, tokenizer: Tokenizer, texts: dict[str, int]) -> dict[str, set[int]]:
    """For each sample, the lines that it names, beside those whose text it really holds."""
    found = {}
    for number in range(len(samples)):
        held = tokenizer.decode(samples.batch([number], pad_id=0).ids[0].tolist())
        named = samples.describe([number])
        found[named] = {line for text, line in texts.items() if text in held}
    return found


def lines_of(named: str) -> set[int]:
    return {int(word) for word in named.rpartition("line")[2].lstrip("s ").split(", ") if word}


def test_packed_samples_name_every_row_in_them_by_its_line(
    write_rows: WriteRows, tmp_path: Path, demo_tokenizer: Tokenizer
) -> None:
    path = write_rows(chat("one"), "", chat("three"), {"bad": 1}, chat("five five"))
    for cache in (None, tmp_path / "kept", tmp_path / "kept"):  # as read, as kept, and as found again
        samples = load_samples(path, demo_tokenizer, max_length=80, on_bad_row="skip", cache=cache)
        texts = {"one": 1, "three": 3, "five five": 5}
        found = rows_by_text(samples, demo_tokenizer, texts)
        assert all(lines_of(named) == held for named, held in found.items()), found
        assert set.union(*found.values()) == {1, 3, 5}
        assert all(named.startswith(f"{path} line") for named in found)


def test_pieces_of_a_text_are_of_one_row_and_copies_too(
    write_rows: WriteRows, demo_tokenizer: Tokenizer
) -> None:
    path = write_rows({"text": "a b c d e f g h i j k l"}, {"text": "z"})
    samples = load_samples({str(path): 2.0}, demo_tokenizer, max_length=5, pack=False)
    assert len(samples) > 6
    assert {samples.describe([number]) for number in range(len(samples))} == {
        f"{path} line 1",
        f"{path} line 2",
    }
    assert samples.describe(range(len(samples))) == f"{path} lines 1, 2"


def test_official_samples_name_their_rows(
    write_rows: WriteRows, telechat1_tokenizer: Tokenizer, telechat2_tokenizer: Tokenizer
) -> None:
    words = ("alpha", "beta", "gamma", "delta", "omega")
    texts = {word: line for line, word in enumerate(words, 1)}
    first = write_rows(*({"input": f"<_user>{word}", "output": word} for word in words))
    second = write_rows(
        *(
            {
                "system": "",
                "dialog": [{"role": "user", "content": word}, {"role": "bot", "content": word}],
                "multiturn": word == "delta",
                "tool": False,
            }
            for word in words
        ),
        name="second.jsonl",
    )
    third = write_rows(*({"text": word} for word in words), name="third.jsonl")
    settings = OfficialSettings(num_samples=4, num_workers=1, group_texts=True)
    for path, tokenizer in (
        (first, telechat1_tokenizer),
        (second, telechat2_tokenizer),
        (third, telechat2_tokenizer),
    ):
        samples = load_samples(path, tokenizer, max_length=60, mode="official", official=settings)
        for named, held in rows_by_text(samples, tokenizer, texts).items():
            assert held <= lines_of(named), (path, named, held)
            assert path == third or held == lines_of(named), (path, named, held)


def test_texts_that_were_grouped_are_found_by_their_tokens() -> None:
    texts = [[1] * 3, [2] * 4, [3], [4] * 9, [5] * 2]
    samples = group(texts, 5)
    found = members([len(text) for text in texts], len(samples), 5)
    assert found == [sorted({token - 1 for token in sample}) for sample in samples]


def test_preferences_name_their_rows(write_rows: WriteRows, demo_tokenizer: Tokenizer) -> None:
    rows = [{"prompt": "?", "chosen": f"good {n}", "rejected": "bad"} for n in range(4)]
    path = write_rows(*rows)
    for paired in (True, False):
        found = load_preferences(path, demo_tokenizer, max_length=99, paired=paired)
        lines = [found.origins.describe([number]) for number in range(len(found))]
        expected = [f"{path} line {number + 1}" for number in range(4) for _ in range(1 if paired else 2)]
        assert lines == expected


def test_a_long_list_is_cut() -> None:
    builder = OriginsBuilder()
    for path, lines in (("a", range(1, 31)), ("b", range(1, 31))):
        builder.add(Row(Path(path), line, {}) for line in lines)
    shown = builder.finish().describe([0, 1, 0])
    assert shown.startswith("a lines 1, 2, 3,") and shown.endswith("30; b lines 1, 2; 28 more rows")
