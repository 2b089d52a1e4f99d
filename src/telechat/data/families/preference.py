"""Preference rows: pairs of answers, or single answers with a verdict.

    {"prompt": …, "chosen": …, "rejected": …}        a pair (DPO, ORPO, SimPO); also the page's pairs.jsonl
    {"chosen": […], "rejected": […]}                 two whole conversations that begin alike
    {"prompt": …, "completion": …, "label": true}    one answer (KTO); also the page's votes.jsonl
    {"conversations": […], "chosen": {…}, "rejected": {…}}    ShareGPT turns before the pair

Prompt and answers are texts or lists of messages, as in TRL.
"""

from __future__ import annotations

from typing import Any

from telechat.data.families.fields import RowValue, list_field, tools_field
from telechat.data.families.messages import read_messages
from telechat.data.families.sharegpt import read_turns
from telechat.data.records import Message, Preference
from telechat.data.rows import RowProblem

NAME = "preference"


def recognise(row: RowValue) -> str | None:
    """A pair, or an answer with a label."""
    if "chosen" in row and "rejected" in row:
        return "the fields chosen and rejected"
    if all(name in row for name in ("prompt", "completion", "label")):
        return "the fields prompt, completion and label"
    return None


def read(row: RowValue) -> Preference:
    """The pair or the judged answer.

    Raises:
        RowProblem: no prompt, an answer without an assistant message, or two equal answers.
    """
    tools = tools_field(row)
    if "label" in row and "chosen" not in row:
        label = row["label"]
        if not isinstance(label, bool):
            raise RowProblem(f"the field label is {label!r}; it must be true or false.")
        prompt, answer = _messages(row, "prompt", "user"), _messages(row, "completion", "assistant")
        _check_answer(prompt, answer, "completion")
        return Preference(prompt, answer, None, label, tools)
    chosen, rejected = _messages(row, "chosen", "assistant"), _messages(row, "rejected", "assistant")
    if "conversations" in row:
        prompt = read_turns(list_field(row, "conversations"))
    elif "prompt" in row:
        prompt = _messages(row, "prompt", "user")
    else:
        prompt, chosen, rejected = _split_common(chosen, rejected)
    _check_answer(prompt, chosen, "chosen")
    _check_answer(prompt, rejected, "rejected")
    if chosen == rejected:
        raise RowProblem("chosen and rejected are the same.")
    return Preference(prompt, chosen, rejected, None, tools)


def _messages(row: RowValue, name: str, role: str) -> tuple[Message, ...]:
    value: Any = row.get(name)
    if isinstance(value, str):
        return ({"role": role, "content": value},)
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and value:
        first = value[0]
        return read_turns(value) if isinstance(first, dict) and "from" in first else read_messages(value)
    raise RowProblem(f"the field {name} must be text or a list of messages.")


def _split_common(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """What both conversations begin with is the prompt."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _check_answer(prompt: tuple[Message, ...], answer: tuple[Message, ...], name: str) -> None:
    if not prompt:
        raise RowProblem("there is no prompt.")
    if not answer or any(message["role"] not in ("assistant", "tool") for message in answer):
        raise RowProblem(f"{name} must hold the assistant's answer and nothing of the user.")
    if answer[-1]["role"] != "assistant":
        raise RowProblem(f"{name} must end with the assistant's answer.")
