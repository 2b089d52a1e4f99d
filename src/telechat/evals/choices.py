"""Multiple-choice questions from files, answered by the likelihood of the letters.

The question, its options and `Answer:` (or `答案：` where the question is Chinese) are the prompt, without
examples; the answer is the letter that the model finds likeliest next. Knows nothing of engines.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from telechat.errors import ConfigError
from telechat.models import TeleChatModel
from telechat.tokenizer import Tokenizer

_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_LETTERS = "ABCDEFG"
_HINT = (
    "Each line: question, options A, B, ..., letter of the right one; or, with a header, columns so named."
)


@dataclass(frozen=True)
class Question:
    """A question, its options in order, and which one is right, from 0."""

    text: str
    options: tuple[str, ...]
    right: int

    @property
    def prompt(self) -> str:
        """What stands before the letter."""
        lines = [f"{letter}. {option}" for letter, option in zip(_LETTERS, self.options, strict=False)]
        ask = "答案：" if _CHINESE.search(self.text) else "Answer:"
        return "\n".join([self.text, *lines, ask])


def read_questions(path: Path) -> list[Question]:
    """The questions of a CSV file, with a header (C-Eval, CMMLU) or without (MMLU). Every field is a text.

    Raises:
        ConfigError: a file that cannot be read, or a line that is no question; it says which.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"Cannot read {path}: {error}.") from error
    if not rows:
        raise ConfigError(f"{path} has no questions.", hint=_HINT)
    names = [name.strip().lower() for name in rows[0]]
    if "question" not in names:
        return [_question(row[0], row[1:-1], row[-1], path, number) for number, row in enumerate(rows, 1)]
    letters = [letter for letter in _LETTERS if letter.lower() in names]
    missing = [name for name in ("a", "b", "answer") if name not in names]
    if missing:
        raise ConfigError(f"{path} has no column {missing[0]!r}.", hint=_HINT)
    questions = []
    for number, row in enumerate(rows[1:], 2):
        fields = dict(zip(names, row, strict=False))
        options = [fields.get(letter.lower(), "") for letter in letters]
        questions.append(_question(fields["question"], options, fields.get("answer", ""), path, number))
    return questions


def _question(text: str, options: Sequence[str], answer: str, path: Path, number: int) -> Question:
    letter = answer.strip().upper()
    if not 2 <= len(options) <= len(_LETTERS) or len(letter) != 1 or letter not in _LETTERS[: len(options)]:
        raise ConfigError(
            f"{path}, question {number}: {len(options)} options, the right one is {answer!r}; there must be "
            f"2 to {len(_LETTERS)}, and the letter of one of them.",
            hint=_HINT,
        )
    return Question(text, tuple(options), _LETTERS.index(letter))


@torch.inference_mode()
def is_right(model: TeleChatModel, tokenizer: Tokenizer, question: Question) -> bool:
    """Whether the likeliest letter is the right one; of equal ones the first counts."""
    prompt = question.prompt
    written = [tokenizer.encode(f"{prompt} {letter}") for letter in _LETTERS[: len(question.options)]]
    # A space may be a token of its own, or one with the letter.
    common = next(place for place, tokens in enumerate(zip(*written, strict=False)) if len(set(tokens)) > 1)
    ids = torch.tensor([written[0][:common]])
    logits = model.project(model.hidden_states(ids)[0, -1]).float()
    return int(logits[[row[common] for row in written]].argmax()) == question.right


def verdicts(model: TeleChatModel, tokenizer: Tokenizer, questions: Sequence[Question]) -> Iterator[bool]:
    """`is_right` of every question."""
    return (is_right(model, tokenizer, question) for question in questions)
