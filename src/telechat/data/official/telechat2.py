"""TeleChat2's training script: its layout without a chat template, its packing, its mixing.

The packing loses rows and can give a sample without a conversation; `packing` and `dataset` do without these
faults. Text never becomes a control token, in which alone this differs from the original.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from telechat.data.records import Message
from telechat.data.rows import RowProblem
from telechat.tokenizer import Tokenizer

ROWS_PER_BATCH = 1000


@dataclass(frozen=True)
class PackedRows:
    """The packs of one system text.

    Attributes:
        packs: token ids per sample.
        members: numbers of the rows in each.
        lost_rows: numbers of the rows that no pack holds.
    """

    packs: list[list[int]]
    members: list[list[int]]
    lost_rows: list[int]


def manual_ids(system: str, dialog: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """A conversation alone in its sample: `[system] text \\n`, then the turns, a newline between them.

    Raises:
        RowProblem: the vocabulary has no system token, or a turn is neither the user's nor the assistant's.
    """
    newline = tokenizer.encode("\n")
    ids = system_prefix(system, tokenizer) + dialog_ids(dialog, tokenizer)
    return ids[: -len(newline)] if dialog and _is_answer(dialog[-1]) else ids


def system_prefix(system: str, tokenizer: Tokenizer) -> list[int]:
    """`[system] enc(text) enc("\\n")`.

    Raises:
        RowProblem: the vocabulary has no system token.
    """
    token_id = tokenizer.special.system
    if token_id is None:
        raise RowProblem("the vocabulary has no <_system>.")
    return [token_id, *tokenizer.encode(system), *tokenizer.encode("\n")]


def dialog_ids(dialog: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """`[user] enc(question)` and `[bot] enc(answer) [end] enc("\\n")`, turn by turn.

    Raises:
        RowProblem: a turn is neither the user's nor the assistant's.
    """
    special, newline = tokenizer.special, tokenizer.encode("\n")
    ids: list[int] = []
    for message in dialog:
        if message["role"] not in ("user", "assistant") or message.get("tool_calls"):
            raise RowProblem("this layout has questions and answers only.")
        text = tokenizer.encode(message["content"])
        if _is_answer(message):
            ids += [special.bot, *text, special.eos, *newline]
        else:
            ids += [special.user, *text]
    return ids


def _is_answer(message: Message) -> bool:
    return bool(message["role"] == "assistant")


def pack_rows(
    prefix: list[int], rows: Sequence[list[int]], newline: list[int], max_length: int
) -> PackedRows:
    """The original's packing of rows with one system text.

    A row that does not fit ends the pack and is lost; the last pack may hold the system text only.

    Args:
        prefix: of the system text.
        rows: `dialog_ids` of each.
        newline: ids of a newline, cut from the end of every pack but the last.
        max_length: `max_seq_length`.
    """
    packs: list[list[int]] = []
    members: list[list[int]] = []
    lost: list[int] = []
    pack = list(prefix)
    held: list[int] = []
    for number, row in enumerate(rows):
        if len(pack) + len(row) > max_length:
            packs.append(pack[: -len(newline)])
            members.append(held)
            lost.append(number)
            pack, held = list(prefix), []
        else:
            pack += row
            held.append(number)
    return PackedRows([*packs, pack], [*members, held], lost)


def shard_rows(rows: Sequence[int], num_shards: int) -> list[list[int]]:
    """Rows as the original's worker processes see them: contiguous shards, cut into batches of 1000."""
    size, larger = divmod(len(rows), num_shards)
    batches, start = [], 0
    for shard in range(num_shards):
        end = start + size + (shard < larger)
        batches += [
            list(rows[first : min(first + ROWS_PER_BATCH, end)])
            for first in range(start, end, ROWS_PER_BATCH)
        ]
        start = end
    return batches


def draw_rows(num_rows: int, weight: float, generator: random.Random) -> list[int]:
    """round(weight * rows) rows with replacement: about a third of the rows are never drawn."""
    return [generator.randrange(num_rows) for _ in range(round(weight * num_rows))]
