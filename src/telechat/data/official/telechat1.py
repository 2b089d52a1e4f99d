"""TeleChat1's `process_data`: rows to lines, lines to packs, packs to left-padded samples.

Faults kept here: packs see the padding and one another, and passes over the rows repeat identical packs.
Text never becomes a control token, in which alone this differs from the original.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from telechat.data.families.fields import RowValue, text_field
from telechat.data.families.telechat1 import BOT, END, USER
from telechat.data.loss_mask import turn_mask
from telechat.data.rows import RowProblem
from telechat.data.sequences import Encoded
from telechat.errors import ConfigError
from telechat.tokenizer import Tokenizer

PAD_ID = 3  # written as a number in the original, whatever the tokenizer says
SPARE = 10


def concat_line(row: RowValue) -> str:
    """A row as one line with the marks in it.

    Raises:
        RowProblem: a field is missing, or the marks do not come in equal numbers.
    """
    question = USER + text_field(row, "input").removeprefix(USER)
    answer = text_field(row, "output").removeprefix(BOT)
    if BOT in question:
        turns = question.split(USER)[1:]
        line = "".join(f"{USER}{turn}{END if BOT in turn else BOT}" for turn in turns) + answer + END
    else:
        line = f"{question}{BOT}{answer}{END}"
    counts = {mark: line.count(mark) for mark in (USER, BOT, END)}
    if len(set(counts.values())) != 1:
        found = ", ".join(f"{number} {mark}" for mark, number in counts.items())
        raise RowProblem(f"it has {found}; their numbers must be equal.")
    return line


def draw_copies(weight: float, generator: random.Random) -> int:
    """How often a row is used: the whole part of the weight, and once more by the chance of the rest."""
    whole = int(weight)
    rest = weight - whole
    if weight < 1:
        return int(generator.random() < weight)
    return whole + (generator.random() < rest)


def packing_length(line: str, tokenizer: Tokenizer) -> int:
    """Tokens of the whole line encoded as text, marks included; more than the sample will have."""
    return len(tokenizer.encode(line, parse_special=True))


def pack_lines(
    lengths: Sequence[int], max_length: int, *, num_samples: int | None = None, num_workers: int = 1
) -> list[list[int]]:
    """Packs of line numbers: greedy first-fit in order, for each worker's shard.

    Args:
        lengths: `packing_length` of each line.
        max_length: `max_seq_len`.
        num_samples: packs to make, in passes over the same lines; None makes one pass.
        num_workers: contiguous shards; the last takes the remainder.

    Raises:
        ConfigError: fewer lines than workers, or every line of a shard is too long (the original then never
            ends).
    """
    if num_workers > len(lengths):
        raise ConfigError(f"{num_workers} workers cannot share {len(lengths)} lines.")
    size = len(lengths) // num_workers
    packs: list[list[int]] = []
    for worker in range(num_workers):
        end = len(lengths) if worker == num_workers - 1 else (worker + 1) * size
        target = None if num_samples is None else num_samples // num_workers
        packs += _pack_shard(lengths, range(worker * size, end), max_length, target)
    return packs


def _pack_shard(
    lengths: Sequence[int], shard: range, max_length: int, num_samples: int | None
) -> list[list[int]]:
    limit = max_length - SPARE
    usable = [line for line in shard if lengths[line] < limit]
    if not usable:
        raise ConfigError(
            f"All {len(shard)} lines of a shard have {limit} tokens or more; samples have {max_length}.",
            hint="Raise the length, or lower the number of workers.",
        )
    shortest = min(lengths[line] for line in shard)
    one_pass: list[list[int]] = []
    pool = usable
    while pool and (num_samples is None or len(one_pass) < num_samples):
        pack, filled, left = [], 0, []
        for place, line in enumerate(pool):
            if max_length - filled <= shortest:
                left += pool[place:]
                break
            if filled + lengths[line] < limit:
                pack.append(line)
                filled += lengths[line]
            else:
                left.append(line)
        one_pass.append(pack)
        pool = left
    if num_samples is None:
        return one_pass
    return [one_pass[number % len(one_pass)] for number in range(num_samples)]


def line_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Lines as tokens: question and answer of every turn encoded on their own.

    Raises:
        RowProblem: a turn does not have exactly one `<_bot>`.
    """
    special = tokenizer.special
    ids: list[int] = []
    for turn in text.split(END):
        if not turn:
            continue
        question, mark, answer = turn.removeprefix(USER).partition(BOT)
        if not mark or BOT in answer:
            raise RowProblem(f"a turn has {turn.count(BOT)} {BOT}; it must have one.")
        ids += [
            special.user,
            *tokenizer.encode(question),
            special.bot,
            *tokenizer.encode(answer),
            special.eos,
        ]
    return ids


def sample_of(text: str, tokenizer: Tokenizer, max_length: int, *, with_loss_mask: bool = True) -> Encoded:
    """The lines of a pack as one sample, padded on the left.

    Args:
        with_loss_mask: mark the `<_user>` tokens and `<_bot>` through `<_end>`; else everything, padding too.

    Raises:
        ConfigError: it is longer than `max_length`.
    """
    ids = line_ids(text, tokenizer)
    padding = max_length - len(ids)
    if padding < 0:
        raise ConfigError(
            f"A pack has {len(ids)} tokens, encoded turn by turn, and a sample {max_length}.",
            hint="Raise the length: the original counts otherwise than it encodes.",
        )
    learnt = turn_mask(ids, tokenizer.special) if with_loss_mask else [True] * len(ids)
    return Encoded([PAD_ID] * padding + ids, [not with_loss_mask] * padding + learnt)
