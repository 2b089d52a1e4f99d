"""Text through `LLM` on several ranks: the tokens of one rank, and a clear end when a rank is gone."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.models import save_folder
from tests.distributed.test_rank_processes import is_alive
from tests.unit.checkpoint.adapters import random_adapter

from telechat.checkpoint import AdapterConfig, read_config, write_adapter
from telechat.engine import LLM, Completion, SamplingParams
from telechat.engine.engine import Engine
from telechat.errors import CheckpointError, ConfigError, DeviceError, RankError, TelechatError
from telechat.parallel.executor import TensorParallelExecutor
from telechat.parallel.groups import TIMEOUT

TINY_GAP = 1e-3  # of the two likeliest tokens' logits: below it rounding may choose


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("ranks"), {"heads": 8, "kv_heads": 2, "vocab": 300})


def pids(llm: LLM) -> list[int]:
    assert isinstance(llm.executor, TensorParallelExecutor)
    return llm.executor.pids


def requests(count: int) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of which many share a beginning, some greedy and some drawn, of all lengths."""
    choose = random.Random(5)
    shared = [choose.randrange(10, 300) for _ in range(60)]
    found = []
    for number in range(count):
        own = [choose.randrange(10, 300) for _ in range(choose.randrange(1, 40))]
        prompt = shared[: choose.choice([0, 20, 40, 60])] + own
        params = SamplingParams(
            temperature=choose.choice([0.0, 0.0, 0.8]),
            seed=number,
            max_tokens=choose.randrange(1, 28),
            ignore_eos=True,
            logprobs=1,
        )
        found.append((prompt, params))
    return found


def answers(llm: LLM, asked: list[tuple[list[int], SamplingParams]]) -> list[Completion]:
    outputs = llm.generate([prompt for prompt, _ in asked], [params for _, params in asked])
    return [output.outputs[0] for output in outputs]


def crowded(llm: LLM) -> None:
    """From now on: prompts in pieces, shared beginnings computed once, and too few blocks for all."""
    llm.__dict__["engine"] = Engine(
        llm.executor, num_blocks=12, block_size=16, max_batch_size=16, max_batch_tokens=48
    )


def test_the_tokens_of_one_rank(folder: Path) -> None:
    """Together as alone to the last bit; as on one rank but where the order of sums decides a near tie."""
    asked = requests(24)
    options: dict[str, Any] = {"max_model_len": 128, "deterministic": True, "prefix_caching": False}
    one_rank = LLM(folder, **options)
    expected = [answers(one_rank, [one])[0] for one in asked]
    llm = LLM(folder, tp=2, block_size=16, **options)
    processes = pids(llm)
    try:
        alone = [answers(llm, [one])[0] for one in asked]
        crowded(llm)
        together = answers(llm, asked)
        stats = llm.stats()
    finally:
        llm.close()
    assert not any(is_alive(pid) for pid in processes)
    assert stats.num_prefix_hit_tokens > 0 and stats.num_preemptions > 0
    assert together == alone
    differing = [
        number for number in range(len(asked)) if alone[number].token_ids != expected[number].token_ids
    ]
    for number in differing:
        ours, theirs = alone[number].token_ids, expected[number].token_ids
        assert gap_at_first_difference(one_rank, asked[number], ours, theirs) < TINY_GAP
    assert len(differing) <= 1


def test_experts_shared_in_four_bits(tmp_path: Path) -> None:
    """Weights rounded while each rank reads its own, and a cache in 4 bits."""
    folder = save_folder(tmp_path, {"heads": 4, "kv_heads": 2, "experts": 4, "vocab": 300})
    asked = [(prompt, params.replace(temperature=0.0)) for prompt, params in requests(12)]
    options: dict[str, Any] = {"max_model_len": 128, "quantize": "int4", "kv_cache_dtype": "int4"}
    one_rank = LLM(folder, **options)
    expected = answers(one_rank, asked)
    llm = LLM(folder, tp=2, ep=2, **options)
    try:
        found = answers(llm, asked)
    finally:
        llm.close()
    num_different = 0
    for one, ours, theirs in zip(asked, found, expected, strict=True):
        if ours.token_ids != theirs.token_ids:
            num_different += 1
            assert gap_at_first_difference(one_rank, one, ours.token_ids, theirs.token_ids) < 2e-2
    assert num_different <= 1


def gap_at_first_difference(
    llm: LLM, asked: tuple[list[int], SamplingParams], ours: list[int], theirs: list[int]
) -> float:
    """Between the two highest logits of the step where two answers part; only greedy ones may."""
    prompt, params = asked
    assert params.temperature == 0
    step = next(index for index, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
    [output] = llm.generate([prompt], params, return_logits="all")
    logits = output.outputs[0].logits
    assert logits is not None
    first, second = logits[step].topk(2).values.tolist()
    return float(first - second)


def test_a_killed_rank_fails_the_requests_and_leaves_nothing(folder: Path) -> None:
    llm = LLM(folder, max_model_len=128, tp=2)
    [pid] = pids(llm)
    llm.generate([[10, 11]], SamplingParams(max_tokens=2))
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    for _ in range(2):  # nor does the next call hang
        with pytest.raises(RankError, match=r"Rank 1 of 2 was ended by signal 9 \(SIGKILL\)"):
            llm.generate([[10, 11, 12]], SamplingParams(max_tokens=2))
    assert time.monotonic() - started < TIMEOUT.total_seconds(), "seen only when the transport gave up"
    assert not is_alive(pid)


def test_ranks_end_with_their_engine(folder: Path) -> None:
    llm = LLM(folder, max_model_len=128, tp=2)
    [pid] = pids(llm)
    del llm
    gc.collect()
    assert not is_alive(pid)


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever asks for the impossible is told before a process starts."""
    monkeypatch.setattr("telechat.parallel.processes.subprocess.Popen", None)
    yield


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"tp": 3}, ConfigError, "8 attention heads cannot be shared by 3 ranks"),
        ({"tp": 16}, ConfigError, "8 attention heads cannot be shared by 16 ranks"),
        ({"ep": 2}, ConfigError, "ep is 2, but this model has no experts"),
        ({"tp": 0}, ConfigError, "tp is 0; it must be at least 1"),
        ({"tp": 2, "device": "cpu:0"}, DeviceError, "Device 'cpu:0' is one device"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    folder: Path, options: dict[str, object], kind: type[TelechatError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        LLM(folder, **options)


def test_a_damaged_folder_is_an_error_of_the_checkpoint(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, {"heads": 8, "kv_heads": 2, "vocab": 300})
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        LLM(folder, tp=2)


def test_adapters_answer_as_on_one_rank(folder: Path, tmp_path: Path) -> None:
    """Each rank keeps its part of an adapter; key/value heads, inner widths and vocabulary are cut."""
    config = read_config(folder)
    folders = {}
    for seed, targets in enumerate((("query", "key_value", "dense"), ("up_proj", "down_proj", "lm_head"))):
        settings = AdapterConfig(r=3, lora_alpha=6, target_modules=targets)
        folders[f"a{seed}"] = tmp_path / f"a{seed}"
        write_adapter(random_adapter(config, seed=seed, settings=settings), folders[f"a{seed}"], config)
    options: dict[str, Any] = {"max_model_len": 128, "adapters": {"a0": folders["a0"]}}
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    prompt = list(range(10, 40))

    def found(llm: LLM) -> list[list[int]]:
        llm.load_adapter("a1", folders["a1"])
        requests = [
            llm.intake.make_requests(prompt, params, adapter=name)[0] for name in (None, "a0", "a1", "a0")
        ]
        for request in requests:
            llm.engine.add(request)
        while llm.engine.has_work:
            llm.engine.step()
        llm.unload_adapter("a1")
        return [request.token_ids for request in requests]

    expected = found(LLM(folder, **options))
    assert len({tuple(tokens) for tokens in expected}) == 3
    llm = LLM(folder, tp=2, **options)
    try:
        assert found(llm) == expected
    finally:
        llm.close()
