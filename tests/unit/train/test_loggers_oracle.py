"""Oracle: TensorBoard, Weights & Biases and SwanLab themselves write a run's metrics, and readers find them.

Both trackers write offline. SwanLab reads what Weights & Biases wrote, and its uploader what SwanLab wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from telechat.train.loggers import open_loggers
from telechat.train.metrics import Metrics

pytestmark = pytest.mark.oracle

Rows = tuple[tuple[int, Mapping[str, float]], ...]

SETTINGS = {"seed": 7, "batch": {"tokens_per_step": 64}, "lora": None}
# The last two rows are of one step: the loss, and that of the evaluation.
ROWS: Rows = (
    (5, {"loss": 2.5, "lr": 1e-3}),
    (10, {"loss": 1.25, "lr": 5e-4}),
    (10, {"evaluation_loss": 1.5}),
)
SCALARS = {
    ("loss", 5): 2.5,
    ("lr", 5): 1e-3,
    ("loss", 10): 1.25,
    ("lr", 10): 5e-4,
    ("evaluation_loss", 10): 1.5,
}


def write(name: Any, folder: Path, rows: Rows = ROWS, *, resumed_step: int = 0) -> None:
    """A run's rows through one logger."""
    loggers = open_loggers([name], folder, SETTINGS, resumed_step=resumed_step)
    metrics = Metrics(folder, resumed_step=resumed_step, loggers=loggers)
    for step, values in rows:
        metrics.add(step, values)
    metrics.close()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder; nothing written into it leaves the machine."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    (tmp_path / "run-7").mkdir()
    return tmp_path / "run-7"


def test_tensorboard(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def found() -> list[tuple[str, int, float]]:
        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        tags = events.Tags()["scalars"]
        return [(name, event.step, event.value) for name in tags for event in events.Scalars(name)]

    write("tensorboard", run)
    assert {(name, step): value for name, step, value in found()} == pytest.approx(SCALARS)
    # Resumed at step 5: what stood at step 10 is gone, and what follows is there once.
    write("tensorboard", run, ((10, {"loss": 1.125}), (15, {"loss": 1.0})), resumed_step=5)
    losses = [(step, value) for name, step, value in found() if name == "loss"]
    assert losses == [(5, 2.5), (10, 1.125), (15, 1.0)]
    assert not [step for name, step, _ in found() if name == "evaluation_loss"]


def wandb_records(path: Path) -> Iterator[Any]:
    from swanlab.converter.wb.wbdatastore import WBDataStoreReader
    from wandb.proto.wandb_internal_pb2 import Record

    with WBDataStoreReader() as reader:
        reader.open(path)
        while (data := reader.scan()) is not None:
            record = Record()
            record.ParseFromString(data)
            yield record


def test_wandb(run: Path) -> None:
    write("wandb", run)
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    found, names, settings = {}, [], {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "run":
            names.append(record.run.display_name)
            settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            if not name.startswith("_"):
                found[name, record.history.step.num] = json.loads(item.value_json)
    assert found == pytest.approx(SCALARS)
    assert names[0] == "run-7" and {name: settings[name] for name in SETTINGS} == SETTINGS


def test_swanlab(run: Path) -> None:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    write("swanlab", run)
    (path,) = run.glob("swanlab/run-*/*.swanlab")
    reader = DataStoreReader()
    reader.open(path)
    found, names = {}, []
    for data in reader:
        record = Record()
        record.ParseFromString(data)
        if record.HasField("start"):
            names.append(record.start.name)
        if record.HasField("scalar"):
            found[record.scalar.key, record.scalar.step] = record.scalar.value.number
    reader.close()
    assert found == pytest.approx(SCALARS) and names == ["run-7"]
    settings = yaml.safe_load((path.parent / "files" / "config.yaml").read_text(encoding="utf-8"))
    assert settings["seed"]["value"] == 7 and settings["batch"]["value"] == {"tokens_per_step": 64}
