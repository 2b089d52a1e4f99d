"""The runner's batches: rows, slots, tables and rotary runs, without a model."""

from __future__ import annotations

from typing import Any, cast

import torch

from telechat.engine.request import Request
from telechat.engine.runner import Runner
from telechat.engine.sampling_params import SamplingParams
from telechat.engine.text import TextStream
from telechat.engine.work import Work
from telechat.models.paged import Executor, PagedBatch


class Recorder:
    """An executor that remembers what it was given."""

    computes_by_kind = True

    def __init__(self) -> None:
        self.allocated: list[tuple[int, int]] = []
        self.batches: list[PagedBatch] = []

    def allocate(self, num_blocks: int, block_size: int) -> None:
        self.allocated.append((num_blocks, block_size))

    def forward(self, batch: PagedBatch) -> torch.Tensor:
        self.batches.append(batch)
        return torch.zeros(len(batch.logit_rows_L), 7)

    def hidden_states(self, batch: PagedBatch) -> torch.Tensor:
        self.batches.append(batch)
        return torch.ones(len(batch.logit_rows_L), 5)


def request(prompt: list[int], answer: list[int], blocks: list[int], drafts: Any = ()) -> Request:
    made = Request(prompt, SamplingParams(), 10, frozenset(), TextStream(cast(Any, None)))
    made.token_ids, made.block_table, made.draft_token_ids = answer, blocks, list(drafts)
    return made


def runner(block_size: int = 16) -> tuple[Runner, Recorder]:
    recorder = Recorder()
    return Runner(cast(Executor, recorder), num_blocks=9, block_size=block_size), recorder


def test_the_cache_is_made() -> None:
    assert runner(32)[1].allocated == [(9, 32)]


def test_decoding_beside_a_chunk() -> None:
    run, recorder = runner()
    decoding = request([1] * 16, [2, 3], [4, 8])
    prompt = request(list(range(100, 150)), [], [7, 2, 5, 3])
    logits = run.logits([Work(decoding, 17, 1, 1, 128), Work(prompt, 10, 25, 0, 128)])
    (batch,) = recorder.batches
    assert logits.shape == (1, 7)
    assert batch.token_ids_T.tolist() == [3, *range(110, 135)]
    assert batch.positions_T.tolist() == [17, *range(10, 35)]
    chunk = [7 * 16 + place for place in range(10, 16)] + [2 * 16 + place for place in range(16)]
    assert batch.slots_T.tolist() == [8 * 16 + 1, *chunk, *range(5 * 16, 5 * 16 + 3)]
    assert batch.logit_rows_L.tolist() == [0]
    assert batch.rope_runs == [(26, 128)]
    sequences = batch.sequences
    assert sequences.query_starts.tolist() == [0, 1, 26]
    assert sequences.kv_lengths.tolist() == [18, 35]
    assert sequences.block_tables[:, :4].tolist() == [[4, 8, 0, 0], [7, 2, 5, 3]]
    assert sequences.block_tables.is_contiguous()
    assert (sequences.most_new, sequences.longest) == (25, 35)
    assert sequences.num_blocks == [2, 4]


def test_answers_come_before_prompts_whatever_the_order_of_works() -> None:
    run, recorder = runner()
    prompt, decoding = request([1, 2, 3], [], [1]), request([4, 5], [6], [2])
    again = request([7, 8], [9, 10, 11], [3])  # has lost its blocks and is computed again
    run.logits([Work(prompt, 0, 3, 3, 9), Work(again, 0, 5, 4, 9), Work(decoding, 2, 1, 1, 9)])
    (batch,) = recorder.batches
    assert batch.sequences.num_decoding == 2
    assert batch.token_ids_T.tolist() == [9, 10, 11, 6, 1, 2, 3, 7, 8]
    assert batch.positions_T.tolist() == [2, 3, 4, 2, 0, 1, 2, 0, 1]
    assert batch.sequences.query_starts.tolist() == [0, 3, 4, 7, 9]
    assert batch.sequences.kv_lengths.tolist() == [5, 3, 3, 2]
    assert batch.sequences.block_tables[:, 0].tolist() == [3, 2, 1, 3]
    # In the order of works: three of the prompt, the last four of five, one.
    assert batch.logit_rows_L.tolist() == [4, 5, 6, 8, 0, 1, 2, 3]


def test_drafts_and_tables_of_their_own() -> None:
    run, recorder = runner()
    drafted = request([1, 2, 3], [4], [6], drafts=[5, 6])
    run.logits([Work(drafted, 3, 1, 1, 20), Work(drafted, 4, 2, 2, 30)])
    (batch,) = recorder.batches
    assert batch.token_ids_T.tolist() == [4, 5, 6]
    assert batch.rope_runs == [(1, 20), (3, 30)]
    assert batch.logit_rows_L.tolist() == [0, 1, 2]
    assert batch.sequences.kv_lengths.tolist() == [4, 6]
    assert batch.sequences.block_tables[:, 0].tolist() == [6, 6]


def test_rows_follow_tables_that_change() -> None:
    run, recorder = runner()
    first, second = request([1] * 16, [2], [3, 4]), request([1] * 16, [2], [5, 6])
    work = [Work(first, 16, 1, 1, 9), Work(second, 16, 1, 1, 9)]
    run.logits(work)
    second.block_table[:] = [7, 8]
    run.logits(work[::-1])
    assert recorder.batches[-1].sequences.block_tables[:, :2].tolist() == [[7, 8], [3, 4]]


def test_the_table_grows_in_both_directions() -> None:
    run, recorder = runner()
    long = request([1] * 1600, [2], list(range(101)))
    run.logits([Work(long, 1600, 1, 1, 9)])
    assert recorder.batches[-1].sequences.block_tables[0, :101].tolist() == long.block_table
    many = [request([1], [2], [number]) for number in range(40)]
    run.logits([Work(one, 1, 1, 1, 9) for one in (*many, long)])
    tables = recorder.batches[-1].sequences.block_tables
    assert tables[:40, 0].tolist() == list(range(40))
    assert tables[40, :101].tolist() == long.block_table


def test_hidden_states_of_a_chunk() -> None:
    run, recorder = runner()
    hidden = run.hidden_states([Work(request([1] * 20, [], [3, 4]), 0, 20, 20, 20)])
    assert hidden.shape == (20, 5)
    assert recorder.batches[0].logit_rows_L.tolist() == list(range(20))
