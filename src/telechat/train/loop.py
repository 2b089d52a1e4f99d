"""The training loop: batches in, weights and metrics out; can be killed and resumed at any step.

Runs on one process. Knows nothing of files beyond its own output folder.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from telechat.errors import TelechatError
from telechat.models import TeleChatModel
from telechat.train.batches import steps_from
from telechat.train.config import TrainConfig
from telechat.train.optimizer import OptimizerSet, learning_rate_factor
from telechat.train.report import Metrics
from telechat.train.samples import SampleSet

log = logging.getLogger(__name__)

# Shapes are rounded up to multiples of these. Matrix libraries generate code for every new shape; without the
# rounding that took a fifth of the training time of a small model.
_ROW_STEP = 8
_LENGTH_STEP = 32
_LEARNT_STEP = 256
_IGNORED = -100


class Trainer:
    """Trains one model on one set of samples.

    Args:
        model: fp32 weights, trained in place.
        samples: what to learn.
        config: the run's settings.
    """

    def __init__(self, model: TeleChatModel, samples: SampleSet, config: TrainConfig) -> None:
        self.model = model
        self.samples = samples
        self.config = config
        self.optimizers = OptimizerSet(model.named_parameters(), config.optimizer)
        self.step = 0
        self.state_path = Path(config.output.folder) / "state.pt"
        if config.compile and _has_compiler():
            # Block by block: one compilation serves all layers, and the mask logic outside stays in Python.
            for block in model.transformer.h:
                block.compile(dynamic=True)

    def resume(self) -> bool:
        """Continue from the folder's last state, if it has one."""
        if not self.state_path.exists():
            return False
        state = torch.load(self.state_path, weights_only=True, map_location=self.model.device)
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.step = state["step"]
        torch.set_rng_state(state["rng"])
        log.info("resuming at step %d", self.step)
        return True

    def save(self) -> None:
        """Write the resumable state, atomically."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "step": self.step,
            "rng": torch.get_rng_state(),
        }
        partial = self.state_path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.state_path)

    def run(self, metrics: Metrics) -> None:
        """Train up to `schedule.total_steps`; `metrics` receives a row every `log_every` steps."""
        config = self.config
        steps = steps_from(
            self.samples.lengths,
            max_tokens=config.batch.tokens_per_step // config.batch.micro_batches,
            batches_per_step=config.batch.micro_batches,
            rows_per_bucket=config.batch.rows_per_bucket,
            seed=config.seed,
            first_step=self.step,
        )
        self.model.train()
        started, tokens = time.perf_counter(), 0
        for epoch, batches in steps:
            if self.step >= config.schedule.total_steps:
                break
            loss, grad_norm, num_tokens = self._train_step(batches)
            tokens += num_tokens
            self.step += 1
            if self.step % config.output.log_every == 0 or self.step == config.schedule.total_steps:
                value = loss.item()
                self._check_finite(value)
                elapsed = time.perf_counter() - started
                metrics.add(
                    step=self.step,
                    epoch=epoch,
                    loss=value,
                    grad_norm=float(grad_norm),
                    lr=self.optimizers.optimizers[0].param_groups[0]["lr"],
                    tokens_per_second=tokens / elapsed,
                )
                started, tokens = time.perf_counter(), 0
            if self.step % config.output.save_every == 0:
                self.save()
        self.save()

    def _train_step(self, batches: list[list[int]]) -> tuple[Tensor, Tensor, int]:
        """One optimiser step; returns loss [], gradient norm [] and the number of real tokens."""
        collated = [self._collate(rows) for rows in batches]
        num_learnt = sum(int(learnt[:, 1:].sum()) for _, learnt, _ in collated)
        self.optimizers.zero_grad()
        loss = torch.zeros((), device=self.model.device)
        for ids, learnt, _ in collated:
            # Dividing by the step's count, not the batch's, weighs every learnt token alike.
            part = self._summed_loss(ids, learnt) / num_learnt
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        grad_norm = _clip(self.model.parameters(), self.config.optimizer.max_grad_norm)
        self.optimizers.step(learning_rate_factor(self.step, self.config.schedule))
        return loss, grad_norm, sum(num_tokens for _, _, num_tokens in collated)

    def _summed_loss(self, ids: Tensor, learnt: Tensor) -> Tensor:
        """Summed next-token cross-entropy [] over learnt positions of ids [B, S]."""
        # Only learnt positions reach the head: most tokens are prompt or padding.
        positions = learnt[:, 1:].reshape(-1).nonzero()[:, 0]
        num_padded = _round_up(len(positions), _LEARNT_STEP) - len(positions)
        targets = F.pad(ids[:, 1:].reshape(-1)[positions], (0, num_padded), value=_IGNORED)
        positions = F.pad(positions, (0, num_padded))
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            hidden = self.model.hidden_states(ids)[:, :-1].flatten(0, 1)
            logits = F.linear(hidden[positions], self.model.output_weight)
        return F.cross_entropy(logits.float(), targets, ignore_index=_IGNORED, reduction="sum")

    def _collate(self, rows: list[int]) -> tuple[Tensor, Tensor, int]:
        """Right-padded ids int64 [B, S] and learnt bool [B, S]. Padding comes last, so causality hides it."""
        offsets = self.samples.offsets
        lengths = [int(offsets[row + 1] - offsets[row]) for row in rows]
        shape = (_round_up(len(rows), _ROW_STEP), _round_up(max(lengths), _LENGTH_STEP))
        ids = np.full(shape, self.model.config.pad_token_id, dtype=np.int64)
        learnt = np.zeros(shape, dtype=np.bool_)
        for index, row in enumerate(rows):
            span = slice(offsets[row], offsets[row + 1])
            ids[index, : lengths[index]] = self.samples.ids[span]
            learnt[index, : lengths[index]] = self.samples.learnt[span]
        device = self.model.device
        return torch.from_numpy(ids).to(device), torch.from_numpy(learnt).to(device), sum(lengths)

    def _check_finite(self, loss: float) -> None:
        if not np.isfinite(loss):
            raise TelechatError(
                f"The loss is {loss} at step {self.step}; the last good state is in {self.state_path}.",
                hint="Lower optimizer.lr or train with --precision fp32; the same command then resumes.",
            )


def _clip(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to a global norm (0 leaves them) and return the norm before."""
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf"))


def _has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler; without one a run is slower, not impossible."""
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if any(shutil.which(name) for name in names if name):
        return True
    log.warning("compile: no C++ compiler found (%s); training without torch.compile", ", ".join(names[1:]))
    return False


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def describe(samples: SampleSet) -> dict[str, Any]:
    """What a run is about to train on, for its log."""
    return {
        "samples": len(samples),
        "tokens": len(samples.ids),
        "learnt tokens": int(samples.learnt.sum()),
        "dropped": samples.dropped,
    }
