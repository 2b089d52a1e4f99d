"""Encodes rows in several processes, in the order of the rows.

Each process loads the tokenizer itself; rows go there and ids come back in chunks, a bounded number of them
on the way at a time, so a file of any size passes through. Results do not depend on the number of processes.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from telechat.data.encoding import encode_record
from telechat.data.loss_mask import LossOn
from telechat.data.reading import ReadRow
from telechat.data.records import Record
from telechat.data.rows import RowProblem
from telechat.data.sequences import Encoded
from telechat.tokenizer import Tokenizer, load_tokenizer

_ROWS_PER_CHUNK = 64
_CHUNKS_PER_PROCESS = 4

Encoder = Callable[[Iterable[ReadRow]], Iterator[tuple[ReadRow, Encoded | RowProblem]]]


@contextmanager
def open_encoder(tokenizer: Tokenizer, loss_on: LossOn, num_processes: int) -> Iterator[Encoder]:
    """A function that gives each row with its ids, or with what is wrong with it.

    Args:
        num_processes: 1 encodes in this process. More need a program that can be imported anew, as
            `telechat train` can.
    """
    if num_processes == 1:
        yield lambda rows: ((row, _encode(row.record, tokenizer, loss_on)) for row in rows)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy whatever threads hold just now
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:

        def submit(chunk: list[ReadRow]) -> Future[list[Encoded | RowProblem]]:
            records = [row.record for row in chunk]
            return pool.submit(_encode_chunk, tokenizer.folder, tokenizer.chat_format.name, loss_on, records)

        def encode(rows: Iterable[ReadRow]) -> Iterator[tuple[ReadRow, Encoded | RowProblem]]:
            rows = iter(rows)
            waiting: deque[tuple[list[ReadRow], Future[list[Encoded | RowProblem]]]] = deque()
            while True:
                while len(waiting) < num_processes * _CHUNKS_PER_PROCESS:
                    chunk = list(itertools.islice(rows, _ROWS_PER_CHUNK))
                    if not chunk:
                        break
                    waiting.append((chunk, submit(chunk)))
                if not waiting:
                    return
                chunk, future = waiting.popleft()
                yield from zip(chunk, future.result(), strict=True)

        yield encode


def _encode(record: Record, tokenizer: Tokenizer, loss_on: LossOn) -> Encoded | RowProblem:
    try:
        return encode_record(record, tokenizer, loss_on)
    except RowProblem as problem:
        return problem


def _encode_chunk(
    folder: Path, chat_format: str, loss_on: LossOn, records: list[Record]
) -> list[Encoded | RowProblem]:
    tokenizer = _tokenizer(folder, chat_format)
    return [_encode(record, tokenizer, loss_on) for record in records]


@cache
def _tokenizer(folder: Path, chat_format: str) -> Tokenizer:
    """Loaded once in each process."""
    return load_tokenizer(folder, chat_format=chat_format)
