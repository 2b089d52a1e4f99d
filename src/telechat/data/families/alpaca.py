"""Alpaca rows: `instruction`, optional `input`, `output`; `system` and `history` as in LLaMA-Factory.

{"instruction": "…", "input": "…", "output": "…", "system": "…", "history": [["q", "a"], …]}
"""

from __future__ import annotations

from telechat.data.families.fields import RowValue, text_field
from telechat.data.records import Conversation, Message
from telechat.data.rows import RowProblem

NAME = "alpaca"


def recognise(row: RowValue) -> str | None:
    """An instruction with an output."""
    return "the fields instruction and output" if "instruction" in row and "output" in row else None


def read(row: RowValue) -> Conversation:
    """Instruction and input are one question, a line each."""
    system, extra = text_field(row, "system", default=""), text_field(row, "input", default="")
    instruction = text_field(row, "instruction")
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowProblem(f"the field history is a {type(history).__name__}; it must be a list of pairs.")
    for number, turn in enumerate(history):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise RowProblem(f"turn {number} of history is no pair of question and answer.")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    question = f"{instruction}\n{extra}" if instruction and extra else instruction or extra
    messages += [
        {"role": "user", "content": question},
        {"role": "assistant", "content": text_field(row, "output")},
    ]
    return Conversation(tuple(messages))
