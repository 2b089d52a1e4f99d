"""Rows of TeleChat1: `input` and `output`, where an input may hold earlier turns.

    {"input": "<_user>question", "output": "answer"}
    {"input": "<_user>q1<_bot>a1<_user>q2", "output": "a2"}

The marks are read as turns only where the row has turns: an input without `<_bot>` is one question, and a
further `<_user>` in it stays text.
"""

from __future__ import annotations

from telechat.data.families.fields import RowValue, text_field
from telechat.data.records import Conversation, Message
from telechat.data.rows import RowProblem

NAME = "telechat1"
USER, BOT, END = "<_user>", "<_bot>", "<_end>"


def recognise(row: RowValue) -> str | None:
    """Both fields, and no `instruction`, which would make it an alpaca row."""
    if "input" in row and "output" in row and "instruction" not in row:
        return "the fields input and output"
    return None


def read(row: RowValue) -> Conversation:
    """The turns of the input, then the output as the last answer."""
    question = text_field(row, "input").removeprefix(USER)
    answer = text_field(row, "output").removeprefix(BOT)
    messages: list[Message] = []
    if BOT in question:
        *earlier, question = question.split(USER)
        for number, turn in enumerate(earlier):
            asked, mark, answered = turn.partition(BOT)
            if not mark or BOT in answered:
                raise RowProblem(f"turn {number + 1} of input has {turn.count(BOT)} {BOT}; it must have one.")
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        if BOT in question:
            raise RowProblem(f"input ends with an answer; it must end with a question ({USER}…).")
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(tuple(messages))
