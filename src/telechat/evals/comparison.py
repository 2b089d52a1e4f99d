"""Two models on the same rows: how far the second's predictions are from the first's.

With a cache of integers a row's tokens see those before them through the engine's cache, in both models, so
that what it loses is measured too. Both models are in memory together while predictions and weights are
compared. Shapes: T marked tokens of a row, V vocabulary. Knows nothing of pages.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telechat.checkpoint import load_model, resolve_model
from telechat.checkpoint.weights import open_weights
from telechat.data.sequences import Encoded
from telechat.engine import LLM, SamplingParams
from telechat.engine.loading import KvCacheDtype, kv_dtype
from telechat.errors import ConfigError
from telechat.evals.choices import Question, verdicts
from telechat.evals.tasks import CHOICES, TaskScores, demo_verdicts, scores
from telechat.layers.int8 import DynamicInt8Linear, StaticInt8Linear
from telechat.layers.quantized import QuantizedLinear
from telechat.models import TeleChatModel
from telechat.models.paged import PagedBatch, TorchExecutor
from telechat.ops.paged import Sequences
from telechat.tokenizer import Tokenizer, load_tokenizer

_HIGHEST_PERCENTILE = 99.0
_BLOCK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """One row.

    Attributes:
        number: of the row, from 1.
        kl: mean over its marked tokens of KL(first || second), in nats.
        num_tokens: marked tokens.
        num_agreed: of these, how many both models would have chosen alike.
        nll_first, nll_second: sum of -log p of the tokens that are there.
    """

    number: int
    kl: float
    num_tokens: int
    num_agreed: int
    nll_first: float
    nll_second: float


@dataclass(frozen=True)
class LayerError:
    """Norm of the difference of a layer's weights over the norm of the first model's."""

    name: str
    error: float


@dataclass(frozen=True)
class Answers:
    """What both models say to the prompt of a row, greedily."""

    number: int
    prompt: str
    first: str
    second: str


@dataclass(frozen=True)
class Cost:
    """Bytes of a model's weights on disk, and new tokens per second; None where it was not measured."""

    num_bytes: int
    tokens_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that was measured.

    Attributes:
        first, second: what the models were called.
        rows: in order.
        token_kl: of all marked tokens of all rows.
        layers: of the linear layers; empty where the models have other shapes.
        answers: of the rows that differ most.
        costs: of the first and the second.
        tasks: what was asked for.
    """

    first: str
    second: str
    rows: tuple[RowResult, ...]
    token_kl: tuple[float, ...]
    layers: tuple[LayerError, ...]
    answers: tuple[Answers, ...]
    costs: tuple[Cost, Cost]
    tasks: tuple[TaskScores, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Marked tokens."""
        return sum(row.num_tokens for row in self.rows)

    @property
    def mean_kl(self) -> float:
        """Nats per token."""
        return sum(self.token_kl) / len(self.token_kl)

    @property
    def high_kl(self) -> float:
        """What 99 of 100 tokens stay below."""
        return float(np.percentile(self.token_kl, _HIGHEST_PERCENTILE))

    @property
    def agreement(self) -> float:
        """Share of tokens for which both would have chosen alike."""
        return sum(row.num_agreed for row in self.rows) / self.num_tokens

    @property
    def perplexities(self) -> tuple[float, float]:
        """Of the first and the second."""
        first, second = (
            sum(getattr(row, name) for row in self.rows) / self.num_tokens
            for name in ("nll_first", "nll_second")
        )
        return math.exp(first), math.exp(second)

    def summary(self) -> dict[str, Any]:
        """What the rows come to."""
        return {
            "perplexity": self.perplexities,
            "mean_kl": self.mean_kl,
            "kl_99_percent": self.high_kl,
            "agreement": self.agreement,
            "num_tokens": self.num_tokens,
        }


def compare(
    first: str | Path,
    second: str | Path,
    rows: Sequence[Encoded],
    *,
    num_worst: int = 5,
    max_new_tokens: int = 64,
    speed_tokens: int = 32,
    demo_rows: int = 0,
    questions: Sequence[Question] = (),
    kv_cache_dtype: KvCacheDtype = "auto",
) -> Comparison:
    """Compare two models.

    Args:
        first, second: folders, hub ids or `demo`; both with the same vocabulary.
        rows: token ids; the marked ones count.
        num_worst: for so many rows that differ most, both models answer.
        max_new_tokens: length of these answers.
        speed_tokens: new tokens to time; 0: speed is not measured.
        demo_rows: held-out rows of each of the demo model's tasks that both answer.
        questions: of multiple choice, that both answer; computed without a cache.
        kv_cache_dtype: of the second's cache, as in `LLM`; the first has its model's.

    Raises:
        ConfigError: no marked tokens, vocabularies that differ, or an unknown kv_cache_dtype.
    """
    _check_numbers(num_worst=num_worst, speed_tokens=speed_tokens, demo_rows=demo_rows)
    if not any(any(row.learnt[1:]) for row in rows):
        raise ConfigError("No row has a token to predict.", hint="Give conversations with answers, or texts.")
    folders = resolve_model(first), resolve_model(second)
    tokenizer = load_tokenizer(folders[0])
    seen = _side_by_side(folders, (str(first), str(second)), tokenizer, rows, questions, kv_cache_dtype)
    worst = [row.number for row in sorted(seen.rows, key=lambda row: -row.kl)[:num_worst]]
    prompts = [_prompt(rows[number - 1]) for number in worst]
    caches: tuple[KvCacheDtype, KvCacheDtype] = ("auto", kv_cache_dtype)
    spoken = [
        _speak(folder, dtype, prompts, max_new_tokens, speed_tokens, demo_rows)
        for folder, dtype in zip(folders, caches, strict=True)
    ]
    tasks = scores(spoken[0].right, spoken[1].right)
    if questions:
        tasks.append(TaskScores.of(CHOICES, *seen.chosen))
    said = zip(worst, prompts, spoken[0].answers, spoken[1].answers, strict=True)
    return Comparison(
        first=str(first),
        second=str(second) if kv_cache_dtype == "auto" else f"{second}, {kv_cache_dtype} cache",
        rows=tuple(seen.rows),
        token_kl=tuple(seen.token_kl),
        layers=seen.layers,
        answers=tuple(Answers(n, tokenizer.decode(ids), one, other) for n, ids, one, other in said),
        costs=(spoken[0].cost, spoken[1].cost),
        tasks=tuple(tasks),
    )


def _check_numbers(**numbers: int) -> None:
    """Refuse numbers below 0."""
    for name, value in numbers.items():
        if value < 0:
            raise ConfigError(f"{name} is {value}; it must not be negative.")


@dataclass(frozen=True)
class _Seen:
    """What was seen of both models in memory: see `Comparison`; `chosen` are verdicts on the questions."""

    layers: tuple[LayerError, ...]
    chosen: tuple[list[bool], list[bool]]
    rows: list[RowResult]
    token_kl: list[float]


def _side_by_side(
    folders: tuple[Path, Path],
    names: tuple[str, str],
    tokenizer: Tokenizer,
    rows: Sequence[Encoded],
    questions: Sequence[Question],
    kv_cache_dtype: KvCacheDtype,
) -> _Seen:
    """Everything that needs both models in memory; they are given up at the end.

    Raises:
        ConfigError: vocabularies that differ, or an unknown kv_cache_dtype.
    """
    one, other = (load_model(folder, device="cpu") for folder in folders)
    sizes = one.config.vocab_size, other.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"{names[0]} has {sizes[0]} tokens, {names[1]} has {sizes[1]}.",
            hint="Name two forms of one model.",
        )
    layers = tuple(_layer_errors(one, other))
    chosen = list(verdicts(one, tokenizer, questions)), list(verdicts(other, tokenizer, questions))
    if kv_cache_dtype == "auto":
        first, second = (partial(log_probabilities, model) for model in (one, other))
        return _Seen(layers, chosen, *_predictions(first, second, rows))
    longest = max(len(row.ids) for row in rows)
    plain, cached = CachedPredictions(one, longest, "auto"), CachedPredictions(other, longest, kv_cache_dtype)
    return _Seen(layers, chosen, *_predictions(plain, cached, rows))


# Of a row: (fp32 [T, V] of the marked tokens' predictions, those tokens [T]).
Predict = Callable[[Encoded], tuple[Tensor, Tensor]]


@torch.inference_mode()
def log_probabilities(model: TeleChatModel, row: Encoded) -> tuple[Tensor, Tensor]:
    """(fp32 [T, V] of the marked tokens' predictions, those tokens [T]), by the modules as they are."""
    ids = torch.tensor(row.ids)
    marked = torch.tensor(row.learnt[1:], dtype=torch.bool)
    hidden = model.hidden_states(ids[None])[0, :-1][marked]
    return torch.log_softmax(model.project(hidden).float(), -1), ids[1:][marked]


class CachedPredictions:
    """The same where each token sees those before it through a paged cache of one row.

    Args:
        model: in eval mode. Its modules compute, in their precision.
        longest: tokens of the longest row.
        kv_cache_dtype: of the cache, as in `LLM`.

    Raises:
        ConfigError: an unknown kv_cache_dtype.
    """

    def __init__(self, model: TeleChatModel, longest: int, kv_cache_dtype: KvCacheDtype) -> None:
        self._executor = TorchExecutor(model, kv_dtype=kv_dtype(kv_cache_dtype))
        self._num_blocks = -(-longest // _BLOCK_SIZE)
        self._executor.allocate(self._num_blocks, _BLOCK_SIZE)

    def __call__(self, row: Encoded) -> tuple[Tensor, Tensor]:
        """(fp32 [T, V] of the marked tokens' predictions, those tokens [T])."""
        ids, places = torch.tensor(row.ids), torch.arange(len(row.ids))
        marked = torch.tensor(row.learnt[1:], dtype=torch.bool)
        sequences = Sequences.of([len(ids)], [len(ids)], [range(self._num_blocks)])
        batch = PagedBatch(ids, places, [(len(ids), len(ids))], places, sequences, places[:-1][marked])
        return torch.log_softmax(self._executor.forward(batch), -1), ids[1:][marked]


def _predictions(
    first: Predict, second: Predict, rows: Sequence[Encoded]
) -> tuple[list[RowResult], list[float]]:
    """Results of all rows that have marked tokens, and the KL of every such token."""
    results: list[RowResult] = []
    token_kl: list[float] = []
    for number, row in enumerate(rows, 1):
        if not any(row.learnt[1:]):
            continue
        ours, tokens = first(row)
        theirs, _ = second(row)
        kl = (ours.exp() * (ours - theirs)).sum(-1).clamp_(min=0)
        token_kl.extend(kl.tolist())
        results.append(
            RowResult(
                number=number,
                kl=float(kl.mean()),
                num_tokens=len(tokens),
                num_agreed=int((ours.argmax(-1) == theirs.argmax(-1)).sum()),
                nll_first=-float(ours.gather(1, tokens[:, None]).sum()),
                nll_second=-float(theirs.gather(1, tokens[:, None]).sum()),
            )
        )
    return results, token_kl


def _weight(module: torch.nn.Module | None) -> Tensor | None:
    """The fp32 weight that a linear layer means; None of other modules."""
    if isinstance(module, QuantizedLinear):
        return module.dequantise()
    if isinstance(module, StaticInt8Linear | DynamicInt8Linear):
        return module.stored.dequantise()
    return module.weight.detach().float() if isinstance(module, torch.nn.Linear) else None


def _layer_errors(first: TeleChatModel, second: TeleChatModel) -> Iterator[LayerError]:
    others = dict(second.named_modules())
    for name, module in first.named_modules():
        ours, theirs = _weight(module), _weight(others.get(name))
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            norm = float(ours.norm())
            yield LayerError(name, float((ours - theirs).norm()) / norm if norm else 0.0)


def _prompt(row: Encoded) -> list[int]:
    """What stands before the last answer, or the first half of a text."""
    marks = list(row.learnt)
    ends = [i for i in range(1, len(marks)) if marks[i] and not marks[i - 1]]
    return list(row.ids[: ends[-1] if ends else max(1, len(marks) // 2)])


@dataclass(frozen=True)
class _Spoken:
    """What one model gave: answers to the prompts, its cost, and which rows of each task it got right."""

    answers: list[str]
    cost: Cost
    right: dict[str, list[bool]]


def _speak(
    folder: Path,
    kv_cache_dtype: KvCacheDtype,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    speed_tokens: int,
    demo_rows: int,
) -> _Spoken:
    num_bytes = sum(path.stat().st_size for path in open_weights(folder).files.files)
    llm = LLM(folder, kv_cache_dtype=kv_cache_dtype)
    greedy = SamplingParams(temperature=0.0, max_tokens=max_new_tokens)
    answers = [llm.generate([prompt], greedy)[0].text for prompt in prompts]
    speed = None
    if speed_tokens:
        timed = SamplingParams(temperature=0.0, max_tokens=speed_tokens, ignore_eos=True)
        prompt = (list(prompts[0]) if prompts else [llm.tokenizer.special.bos])[:64]
        llm.generate([prompt], timed)
        began = time.perf_counter()
        llm.generate([prompt], timed)
        speed = speed_tokens / (time.perf_counter() - began)
    return _Spoken(answers, Cost(num_bytes, speed), demo_verdicts(llm, demo_rows))
