"""What a training step and the copy of a checkpoint really take: every allocation of tensors on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from telechat.models import TeleChatConfig, build_model, initialise
from telechat.train.adapters import adapter_config, add_adapters
from telechat.train.batch import Batch
from telechat.train.config import OptimizerSection
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.engine import LocalEngine
from telechat.train.objective import CrossEntropy
from telechat.train.plan import PlanRequest
from telechat.train.precision import PRECISIONS
from telechat.train.recompute import apply_recompute
from telechat.train.setup import choose_training_attention


def tiny_config(**changes: object) -> TeleChatConfig:
    """A model whose parts all weigh something: six layers, a head of its own."""
    values: dict[str, object] = {
        "vocab_size": 2000,
        "hidden_size": 64,
        "num_layers": 6,
        "num_heads": 4,
        "num_kv_heads": 4,
        "ffn_hidden_size": 192,
    }
    return TeleChatConfig(**{**values, **changes})  # type: ignore[arg-type]


def request(config: TeleChatConfig, **changes: object) -> PlanRequest:
    """A run of it in one process on the CPU, without what the process holds beside tensors."""
    values: dict[str, object] = {
        "config": config,
        "task": "lora" if "lora" in changes else "sft",
        "length": 256,
        "rows": 2,
        "layout": ParallelLayout(dp=1, zero_stage=0),
        "precision": "fp32",
        "on_accelerator": False,
        "program_bytes": 0,
    }
    return PlanRequest(**{**values, **changes})  # type: ignore[arg-type]


def measure(run: PlanRequest) -> int:
    """Bytes of all tensors at the worst moment of a step that is not the first, and of the copy after it."""
    torch.manual_seed(0)
    precision = PRECISIONS[run.precision]
    model = build_model(run.config, device=torch.device("cpu"))
    initialise(model, seed=0)
    model.to(precision.weights)
    attention = "reference" if run.attention == "reference" else "sdpa"
    choose_training_attention(model, attention, precision.compute, "cpu")
    if run.lora is not None:
        add_adapters(model, run.lora, adapter_config(run.lora, "base"), precision, seed=0)
    apply_recompute(model.transformer.blocks, run.recompute)
    section = OptimizerSection(name=run.optimizer)
    engine = LocalEngine(model.train(), CrossEntropy(), section, run.precision)
    batches = [make_batch(run) for _ in range(run.micro_batches)]

    def step() -> None:
        engine.backward(batches)
        engine.clip(1.0)
        engine.step(1.0)

    step()
    engine.optimizers.zero_grad()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    states = engine.optimizers.state().values()
    moments = sum(t.numel() * t.element_size() for state in states for t in state.values())

    def step_and_copy() -> None:
        step()
        state = engine.state()
        copies = [tensor.detach().clone() for tensor in state["model"].values()]
        copies += [tensor.clone() for known in state["optimizer"].values() for tensor in known.values()]

    return weights + moments + peak_bytes(step_and_copy)


def make_batch(run: PlanRequest) -> Batch:
    """Rows of the request's length that are learnt as a whole; packed ones hold two conversations."""
    shape = (run.rows, run.length)
    ids = torch.randint(0, run.config.vocab_size, shape)
    segments = torch.zeros(shape, dtype=torch.int32)
    if run.packed:
        segments[:, run.length // 2 :] = 1
    return Batch(
        ids=ids,
        positions=torch.arange(run.length).repeat(run.rows, 1),
        segments=segments,
        targets=ids.roll(-1, 1),
        weights=None,
        is_packed=run.packed,
    )


@dataclass(frozen=True)
class _Event:
    """An allocation, or with a negative size a release."""

    time: int
    place: int
    num_bytes: int


def peak_bytes(work: Callable[[], None]) -> int:
    """The most bytes of tensors that `work` holds at once, beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [
        _Event(event.start_ns(), place, event.nbytes())
        for place, event in enumerate(recorded.profiler.kineto_results.events())  # type: ignore[union-attr]
        if event.name() == "[memory]"
    ]
    held = most = 0
    for event in sorted(events, key=lambda event: (event.time, event.place)):
        held += event.num_bytes
        most = max(most, held)
    return most
