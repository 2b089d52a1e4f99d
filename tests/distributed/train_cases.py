"""Training cases for several processes, the one-process run they are compared with, and what starts them."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from telechat.config import from_mapping
from telechat.device import CPU
from telechat.layers.moe import MoeConfig
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, TeleChatModel, build_model, initialise
from telechat.train.adapters import adapter_config, add_adapters
from telechat.train.batch import IGNORED, PADDING_SEGMENT, Batch
from telechat.train.config import LoraSection, OptimizerSection
from telechat.train.distributed.deepspeed import DeepSpeedEngine
from telechat.train.distributed.engine import DistributedEngine
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.distributed.sources import model_source
from telechat.train.distributed.state import PieceLoadPlanner
from telechat.train.engine import LocalEngine, TrainEngine
from telechat.train.objective import CrossEntropy, Objective
from telechat.train.precision import PRECISIONS
from telechat.train.preference import PreferenceBatch, PreferenceObjective
from telechat.train.preference_settings import PreferenceSection
from telechat.train.recompute import Recompute, apply_recompute

ROOT = Path(__file__).resolve().parents[2]
MICRO_BATCHES = 4
VOCAB = 101  # which no number of ranks divides
MAX_NORM = 1.0
# With the usual eps, AdamW makes whole steps of what rounding leaves of gradients near zero.
OPTIMIZER = OptimizerSection(lr=1e-2, max_grad_norm=MAX_NORM, eps=1e-4)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        layouts: the recipe's `parallel` section; with several, the run is resumed with the next one after an
            equal share of the steps.
        model: arguments of `make_config`.
        packed: rows hold several conversations.
        precision: a name from `PRECISIONS`.
        lora: the recipe's `lora` section, if adapters are trained.
        recompute: the recipe's `recompute`.
        preference: the recipe's `preference` section, if each batch is a pair of answers.
    """

    name: str
    layouts: list[dict[str, Any]]
    model: dict[str, Any] = field(default_factory=dict)
    steps: int = 20
    packed: bool = False
    precision: str = "fp32"
    recompute: Recompute = "none"
    lora: dict[str, Any] = field(default_factory=dict)
    preference: dict[str, Any] = field(default_factory=dict)


def make_config(
    *,
    heads: int = 4,
    kv_heads: int = 2,
    experts: int = 0,
    tied: bool = False,
    layers: int = 2,
    capacity: float = 0.0,
    inner: int = 48,
) -> TeleChatConfig:
    """Head dimension 8."""
    moe = MoeConfig(
        num_experts=experts, num_experts_per_token=2, aux_loss_factor=0.05, capacity_factor=capacity
    )
    return TeleChatConfig(
        vocab_size=VOCAB,
        hidden_size=8 * heads,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        ffn_hidden_size=inner,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        rope=RopeSettings(base_length=64, training_length=64),
        moe=moe if experts else None,
    )


def whole_model(shape: dict[str, Any]) -> TeleChatModel:
    """The same random model in every process, biases included."""
    model = build_model(make_config(**shape), attention="sdpa")
    initialise(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.data.normal_(0.0, 0.5, generator=generator)
    return model


def step_batches(step: int, *, packed: bool) -> list[Batch]:
    """The micro batches of a step: two rows of 16 tokens, with padding and parts that are not learnt."""
    generator = torch.Generator().manual_seed(100 + step)
    return [_batch(generator, packed) for _ in range(MICRO_BATCHES)]


def _batch(generator: torch.Generator, packed: bool) -> Batch:
    B, S = 2, 16
    # Each token mostly follows from the one before it, so that there is something to learn.
    ids = torch.randint(0, VOCAB, (B, 1), generator=generator) + 7 * torch.arange(S)
    ids = (ids + torch.randint(0, 2, (B, S), generator=generator)) % VOCAB
    positions = torch.arange(S).repeat(B, 1)
    segments = torch.zeros(B, S, dtype=torch.int32)
    if packed:
        border = int(torch.randint(3, 9, (1,), generator=generator))
        segments[:, border:] += 1
        positions[:, border:] -= border
    num_padded = int(torch.randint(0, 4, (1,), generator=generator))
    segments[1, S - num_padded :] = PADDING_SEGMENT
    targets = ids.roll(-1, 1)
    targets[torch.rand(B, S, generator=generator) < 0.3] = IGNORED
    targets[:, -1] = IGNORED
    targets[segments == PADDING_SEGMENT] = IGNORED
    weights = torch.rand(B, S, generator=generator) if packed else None
    return Batch(
        ids=ids, positions=positions, segments=segments, targets=targets, weights=weights, is_packed=packed
    )


def case_batches(case: Case, step: int) -> list[Batch]:
    """The micro batches of a step; for preferences each is one pair."""
    batches = step_batches(step, packed=case.packed)
    if not case.preference:
        return batches
    reference = torch.tensor([-30.0, -31.0])
    return [PreferenceBatch(**vars(batch), num_pairs=1, reference=reference) for batch in batches]


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """Train with each layout of a case in turn; returns losses, norms and, on rank 0, the weights."""
    losses, norms = [], []
    engine: TrainEngine | None = None
    share = case.steps // len(case.layouts)
    for number, layout in enumerate(case.layouts):
        engine = make_engine(case, layout)
        path = folder / f"{case.name}-{number}"
        if number:
            state = engine.state()
            dcp.load(state, checkpoint_id=path, planner=PieceLoadPlanner())
            engine.load_state(state)
        for step in range(number * share, (number + 1) * share):
            loss, norm = train_step(engine, case_batches(case, step))
            losses.append(loss)
            norms.append(norm)
        if number + 1 < len(case.layouts):
            save(engine, folder / f"{case.name}-{number + 1}")
    assert engine is not None
    evaluated = engine.evaluate(share_of(engine, case_batches(case, 1000)))
    weights = {name: tensor.clone() for name, tensor in engine.weights()}
    return {"losses": losses, "norms": norms, "evaluated": float(evaluated.mean), "weights": weights}


def save(engine: TrainEngine, path: Path) -> None:
    """As the training loop does: copied, then written beside what follows."""
    spread = dist.is_initialized()
    written = dcp.async_save(engine.state(), checkpoint_id=path, no_dist=not spread)
    written.result()
    if spread:
        dist.barrier()


def train_step(engine: TrainEngine, batches: list[Batch]) -> tuple[float, float]:
    """(loss, gradient norm) of one step."""
    loss = engine.backward(share_of(engine, batches))
    norm = engine.clip(MAX_NORM)
    engine.step(1.0)
    return float(loss.mean), norm


def share_of(engine: TrainEngine, batches: list[Batch]) -> list[Batch]:
    """The batches of a rank."""
    return batches[engine.data_rank :: engine.data_size]


def make_engine(case: Case, layout: dict[str, Any]) -> TrainEngine:
    """The engine of this process for a layout; `{"local": True}` trains all of it alone."""
    model = whole_model(case.model)
    precision: Any = case.precision
    model.to(PRECISIONS[precision].weights)
    if case.lora:
        section = LoraSection(**case.lora)
        add_adapters(model, section, adapter_config(section, ""), PRECISIONS[precision], seed=3)
    objective: Objective = CrossEntropy()
    if case.preference:
        objective = PreferenceObjective(PreferenceSection(**case.preference))
    if layout.get("local"):
        return LocalEngine(model, objective, OPTIMIZER, precision)
    parallel = from_mapping(ParallelLayout, layout).for_world(dist.get_world_size())
    if parallel.engine == "deepspeed":
        return DeepSpeedEngine(model, objective, OPTIMIZER, precision, layout=parallel, device=CPU)
    return DistributedEngine(
        model,
        objective,
        OPTIMIZER,
        precision,
        layout=parallel,
        device=CPU,
        source=model_source(model),
        prepare=lambda blocks: apply_recompute(blocks, case.recompute),
    )


@functools.cache
def _expected(text: str) -> dict[str, Any]:
    case = Case(**json.loads(text))
    return run_case(case, Path())


def expected(case: Case) -> dict[str, Any]:
    """What one process finds."""
    alone = dataclasses.replace(case, name="alone", layouts=[{"local": True}], recompute="none")
    return _expected(json.dumps(dataclasses.asdict(alone)))


def start_ranks(
    cases: list[Case], world_size: int, folder: Path, *, timeout_s: float = 240, python: str = sys.executable
) -> None:
    """Run cases in `world_size` forks of one new process; returns when all have ended."""
    (folder / "cases.json").write_text(json.dumps([dataclasses.asdict(case) for case in cases]))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    words = [str(folder), str(world_size), str(timeout_s)]
    # What failed is in the folder; `result` shows it.
    subprocess.run(
        [python, "-m", "tests.distributed.train_rank", *words], env=environment, cwd=ROOT, check=False
    )


def result(case: Case, folder: Path) -> dict[str, Any]:
    """What the ranks found; the traceback of the one that failed otherwise."""
    path = folder / f"{case.name}.pt"
    if not path.exists():
        errors = [file.read_text() for file in folder.glob("*.error")]
        logs = [f"{file.name}:\n{file.read_text()[-3000:]}" for file in sorted(folder.glob("rank-*.log"))]
        raise AssertionError("\n".join([f"{case.name} did not end.", *(errors or logs)]))
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found
