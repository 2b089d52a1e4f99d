"""The training loop: batches in, weights and metrics out; can be killed and resumed at any step.

Knows nothing of how weights are held or spread (that is the engine) or of rows and files (that is the feed).
"""

from __future__ import annotations

import json
import logging
import math
import time
import zlib
from dataclasses import dataclass
from typing import Any

import torch

from telechat.config import to_mapping
from telechat.device import peak_memory
from telechat.errors import CheckpointError, TelechatError
from telechat.train.checkpoints import CheckpointStore
from telechat.train.config import TrainConfig
from telechat.train.engine import StepLoss, TrainEngine
from telechat.train.feed import Feed, StepBatches
from telechat.train.flops import StepCost
from telechat.train.interruption import Interruption
from telechat.train.metrics import PEAK, Metrics, Progress
from telechat.train.schedule import Schedule

log = logging.getLogger(__name__)

_PEAK_GROWTH = 1.01
_BASE, _ROPE = "model.start_from", "model.rope"
# Of an adapter's settings, those that may change between two parts of a run.
_FREE = ("dropout", "merge")


@dataclass(frozen=True)
class Meter:
    """What turns steps into rates.

    Attributes:
        cost: operations of a batch.
        matmul_rate: operations a second that one device does in a matrix product.
        num_devices: devices of the run.
    """

    cost: StepCost
    matmul_rate: float
    num_devices: int


@dataclass
class _Interval:
    """Sums since the last row of metrics."""

    seconds: float = 0.0
    num_tokens: int = 0
    operations: float = 0.0


class Trainer:
    """Takes an engine through the steps of a run. On several processes, all ranks run one alike.

    Args:
        engine: holds weights and optimiser.
        feed: what each step shows.
        schedule: length of the run and its learning rates.
        config: the run's settings.
        checkpoints: where states go.
        meter: what a step costs.
        evaluation: rows whose loss is measured now and then.
    """

    def __init__(
        self,
        engine: TrainEngine,
        feed: Feed,
        schedule: Schedule,
        config: TrainConfig,
        *,
        checkpoints: CheckpointStore,
        meter: Meter,
        evaluation: Feed | None = None,
    ) -> None:
        self.engine = engine
        self.feed = feed
        self.schedule = schedule
        self.config = config
        self.checkpoints = checkpoints
        self.meter = meter
        self.evaluation = evaluation
        self.step = 0

    def resume(self) -> bool:
        """Continue from the folder's newest checkpoint, if it has one.

        Raises:
            CheckpointError: it cannot be read, or its tensors mean something else under this recipe.
        """
        known = self.checkpoints.steps()
        if not known:
            return False
        state = self.engine.state()
        progress = self.checkpoints.load(known[-1], state)
        self._check_meaning(progress)
        self.engine.load_state(state)
        self.engine.loss_scale.load_state_dict(progress["loss_scale"])
        self.step = known[-1]
        if progress["data"] != self.feed.fingerprint():
            log.warning("the data or its order is not that of the checkpoint; continuing with the new one")
        log.info("resuming at step %d", self.step)
        return True

    def run(
        self,
        metrics: Metrics | None = None,
        progress: Progress | None = None,
        interruption: Interruption | None = None,
    ) -> None:
        """Train up to the end of the schedule, or up to the step in which a signal came.

        Args:
            metrics: receives a row every `log_every` steps, and after each evaluation; on one rank only.
            progress: the terminal; on one rank only.
            interruption: says whether to stop; for a run of one process.

        Raises:
            TelechatError: the loss or the gradient is not a number; the weights are those before that step.
            CheckpointError: a checkpoint could not be written.
        """
        output, total_steps = self.config.output, self.schedule.total_steps
        interval = _Interval()
        recorded_peak: float | None = None
        for shown in self.feed.steps(self.step):
            if self.step >= total_steps:
                break
            started = time.perf_counter()
            loss, grad_norm = self._train_step(shown)
            self.step += 1
            interval.seconds += time.perf_counter() - started
            interval.num_tokens += shown.num_tokens
            interval.operations += sum(self.meter.cost.of(batch) for batch in shown.batches)
            is_last = self.step == total_steps
            if progress is not None:
                progress.step(self.step, loss, interval.num_tokens / interval.seconds)
            if self.step % output.log_every == 0 or is_last:
                values = {"epoch": shown.epoch, "loss": loss, "grad_norm": grad_norm, **self._rates(interval)}
                _record(self.step, values, metrics, progress)
                interval, recorded_peak = _Interval(), values.get(PEAK)
            if self.evaluation and (self.step % self.config.evaluation.every == 0 or is_last):
                evaluated = {"evaluation_loss": self._evaluate(self.evaluation)}
                _record(self.step, evaluated, metrics, progress)
            self.checkpoints.check()
            is_stopped = interruption is not None and interruption.number is not None
            if self.step % output.save_every == 0 or is_last or is_stopped:
                self.save()
            if is_stopped:
                self.checkpoints.wait()
                log.info("stopped; step %d is saved, and the same command continues from it", self.step)
                break
        self.checkpoints.wait()
        peak = peak_memory(self.engine.device)
        if metrics is not None and recorded_peak and peak and peak > _PEAK_GROWTH * recorded_peak:
            metrics.add(self.step, {PEAK: peak})  # the copy of the last checkpoint took more than any step

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        progress = {
            "loss_scale": self.engine.loss_scale.state_dict(),
            "data": self.feed.fingerprint(),
            "meaning": _meaning(self.config),
        }
        self.checkpoints.save(self.step, self.engine.state(), progress)

    def _check_meaning(self, progress: dict[str, Any]) -> None:
        """Refuse a checkpoint whose tensors fit in shape, but were made under settings that give them another
        meaning. Checkpoints of earlier versions do not say."""
        ours = _meaning(self.config)
        theirs = {_ROPE: ours[_ROPE]} | progress.get("meaning", ours)
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) == theirs.get(name):
                continue
            changed = f"{name} is {ours.get(name)} here and was {theirs.get(name)}"
            if name == _BASE:  # a folder may have been moved
                log.warning("%s when the checkpoint was written; an adapter fits its own base only", changed)
                continue
            raise CheckpointError(
                f"Cannot resume from the newest state in {self.checkpoints.folder}: {changed}.",
                hint="Use the recipe that wrote it, or another output.folder to begin anew.",
            )

    def _train_step(self, shown: StepBatches) -> tuple[float, float]:
        """One optimiser step; returns loss and gradient norm. Weights change only if both are numbers."""
        # Dropout and every other draw of a step depend on seed and step alone, so a resumed run draws the
        # same. Ranks that work on one batch together draw alike.
        torch.manual_seed(zlib.crc32(f"{self.config.seed}/{self.step}/{self.engine.data_rank}".encode()))
        result = self.engine.backward(shown.batches)
        loss = float(result.mean)
        if not math.isfinite(loss):
            raise self._not_a_number("loss", loss, result, shown)
        grad_norm = self.engine.clip(self.config.optimizer.max_grad_norm)
        scale = self.engine.loss_scale
        overflowed = not math.isfinite(grad_norm)
        if overflowed and scale.scale == 1.0:
            raise self._not_a_number("gradient norm", grad_norm, result, shown)
        scale.update(overflowed=overflowed)
        if not overflowed:
            self.engine.step(self.schedule.factor(self.step))
        return loss, grad_norm

    def _evaluate(self, feed: Feed) -> float:
        return float(self.engine.evaluate(feed.one_pass()).mean)

    def _rates(self, interval: _Interval) -> dict[str, float]:
        """Learning rate, speed and memory."""
        meter = self.meter
        seconds = interval.seconds
        # Ranks that share a batch count it together, once for each rank that has other batches.
        operations = interval.operations * self.engine.data_size
        rates = {
            "lr": self.engine.learning_rate(),
            "tokens_per_second": interval.num_tokens / seconds,
            "mfu": operations / (seconds * meter.matmul_rate * meter.num_devices),
        }
        if self.engine.loss_scale.enabled:
            rates["loss_scale"] = self.engine.loss_scale.scale
        peak = peak_memory(self.engine.device)
        if peak is not None:
            rates[PEAK] = peak
        return rates

    def _not_a_number(self, what: str, value: float, result: StepLoss, shown: StepBatches) -> TelechatError:
        """The end of a run that went wrong, naming the rows that were shown."""
        guilty = [
            batch
            for batch, part in zip(shown.samples, result.parts.tolist(), strict=True)
            if not math.isfinite(part)
        ]
        is_elsewhere = what == "loss" and not guilty
        samples = [sample for batch in guilty or shown.samples for sample in batch]
        rows = "rows that another process names" if is_elsewhere else self.feed.samples.describe(samples)
        self.checkpoints.wait()  # one may be on its way to the disk
        known = self.checkpoints.steps()
        kept = f"the last good state is that of step {known[-1]}" if known else "no state was saved yet"
        return TelechatError(
            f"The {what} is {value} at step {self.step + 1}, for {rows}; {kept} ({self.checkpoints.folder}).",
            hint="Look at these rows, lower optimizer.lr or set precision to fp32; the same command resumes.",
        )


def _meaning(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide what the numbers in a checkpoint mean, as JSON gives them back."""
    found: dict[str, Any] = {"optimizer.name": config.optimizer.name, "lora": config.lora is not None}
    rope = to_mapping(config.model.rope)
    found[_ROPE] = {name: value for name, value in rope.items() if value is not None}
    if config.lora is not None:
        section = to_mapping(config.lora)
        found |= {f"lora.{name}": value for name, value in section.items() if name not in _FREE}
        found[_BASE] = config.model.start_from
    meaning: dict[str, Any] = json.loads(json.dumps(found))
    return meaning


def _record(step: int, values: dict[str, float], metrics: Metrics | None, progress: Progress | None) -> None:
    if metrics is not None:
        metrics.add(step, values)
    if progress is not None:
        progress.row(step, values)
