"""`telechat checkpoint split`, `merge`, `reshard` and `strategy`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.unit.checkpoint.formats.samples import KINDS, model_folder

from telechat.checkpoint.formats.lazy import HeldTensor, same_numbers
from telechat.checkpoint.formats.opening import open_checkpoint
from telechat.checkpoint.formats.writing import TargetPlan, write_target
from telechat.checkpoint.mindspore.container import Value, as_values, plan_ckpt, read_values
from telechat.checkpoint.mindspore.strategy import read_strategy, strategy_file, strategy_files
from telechat.cli.main import main


def checkpoint(verb: str, *words: object) -> int:
    return main(["checkpoint", verb, *map(str, words)])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A MindSpore checkpoint of one rank, with a config beside it."""
    model_folder(tmp_path / "model", KINDS["mixture"])
    assert checkpoint("convert", tmp_path / "model", tmp_path / "ms", "--to", "mindspore") == 0
    return tmp_path / "ms"


def whole_file(folder: Path) -> bytes:
    return (folder / "rank_0/checkpoint_0.ckpt").read_bytes()


@pytest.mark.parametrize("layout", ["mp2", "dp2,mp2", "dp4,opt", "pp2,dp2,mp2,opt", "dp2,ep2,mp2"])
def test_split_and_merge(layout: str, source: Path, tmp_path: Path) -> None:
    assert checkpoint("split", source, tmp_path / "cut", "--layout", layout) == 0
    ranks = sorted((tmp_path / "cut/ms").iterdir())
    assert len(ranks) == len(list((tmp_path / "cut/strategy").iterdir())) > 1
    assert checkpoint("merge", tmp_path / "cut", tmp_path / "whole") == 0
    merged = read_values(tmp_path / "whole/rank_0/checkpoint_0.ckpt")
    for name, value in read_values(source / "rank_0/checkpoint_0.ckpt").items():
        assert same_numbers(merged[name].tensor, value.tensor), name
    if "pp" not in layout:
        assert whole_file(tmp_path / "whole") == whole_file(source)
    # A sliced folder is a model like any other.
    expected, found = open_checkpoint(tmp_path / "model"), open_checkpoint(tmp_path / "cut")
    assert all(same_numbers(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_reshard(source: Path, tmp_path: Path) -> None:
    assert checkpoint("split", source, tmp_path / "a", "--layout", "dp2,mp2,opt") == 0
    assert checkpoint("reshard", tmp_path / "a", tmp_path / "b", "--layout", "pp2,mp4", "--prefix", "x_") == 1
    words = ("--layout", "pp2,mp2", "--prefix", "x_")
    assert checkpoint("reshard", tmp_path / "a", tmp_path / "b", *words) == 0
    names = sorted(path.name for path in (tmp_path / "b").glob("a/rank_*/*"))
    assert names == [f"x_{number}.ckpt" for number in range(4)]
    assert checkpoint("split", source, tmp_path / "c", *words) == 0
    files = list((tmp_path / "c/ms").rglob("*.ckpt"))
    assert len(files) == 4
    for path in files:
        assert path.read_bytes() == (tmp_path / "b/a" / path.relative_to(tmp_path / "c/ms")).read_bytes()


def test_by_strategy_files(source: Path, tmp_path: Path) -> None:
    words = ("--model-config", tmp_path / "model/config.json", "--layout", "dp2,mp2,pp2")
    assert checkpoint("strategy", tmp_path / "strategy", *words) == 0
    assert len(list((tmp_path / "strategy").iterdir())) == 8
    file = source / "rank_0/checkpoint_0.ckpt"
    assert checkpoint("split", file, tmp_path / "cut", "--to-strategy", tmp_path / "strategy") == 0
    assert read_strategy(tmp_path / "cut/strategy") == read_strategy(tmp_path / "strategy")
    (tmp_path / "cut/strategy").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "strategy")  # it would be found beside the source
    assert checkpoint("merge", tmp_path / "cut", tmp_path / "whole", "--prefix", "all_") == 1
    words = ("--prefix", "all_", "--strategy", tmp_path / "moved")
    assert checkpoint("merge", tmp_path / "cut", tmp_path / "whole", *words) == 0
    assert (tmp_path / "whole/rank_0/all_0.ckpt").is_file()
    words = ("--strategy", tmp_path / "moved", "--to-strategy", tmp_path / "moved")
    assert checkpoint("reshard", tmp_path / "cut", tmp_path / "again", *words) == 0


def test_training_state_is_taken_along(tmp_path: Path) -> None:
    """What a strategy names is sliced, the rest copied: moments, counters, a text."""
    model_folder(tmp_path / "model")
    assert checkpoint("convert", tmp_path / "model", tmp_path / "ms", "--to", "mindspore") == 0
    values = read_values(tmp_path / "ms/rank_0/checkpoint_0.ckpt")
    name = "model.layers.0.attention.wq.weight"
    moment = as_values({f"adam_m.{name}": HeldTensor(torch.randn(values[name].dims))})
    text = Value(HeldTensor(torch.tensor(list("好".encode("utf-32-le")), dtype=torch.uint8)), "str", (0,))
    extra = {**moment, "global_step": Value.of(HeldTensor(torch.tensor(7, dtype=torch.int32))), "note": text}
    plan = TargetPlan((plan_ckpt("x", {**values, **extra}),), is_file=True)
    write_target(tmp_path / "all.ckpt", plan)

    words = ("--model-config", tmp_path / "model/config.json", "--layout", "mp2")
    assert checkpoint("strategy", tmp_path / "strategy", *words) == 0
    layouts = dict(read_strategy(tmp_path / "strategy").stages[0])
    layouts[f"adam_m.{name}"] = layouts[name]
    for number in range(2):
        content = strategy_file(0, layouts)
        (tmp_path / f"strategy/ckpt_strategy_rank_{number}.ckpt").write_bytes(content)
    assert (
        checkpoint("split", tmp_path / "all.ckpt", tmp_path / "cut", "--to-strategy", tmp_path / "strategy")
        == 0
    )
    second = read_values(tmp_path / "cut/all/rank_1/checkpoint_1.ckpt")
    assert torch.equal(second[f"adam_m.{name}"].tensor.read(), moment[f"adam_m.{name}"].tensor.read()[16:])
    assert second["global_step"].tensor.read().item() == 7
    assert checkpoint("merge", tmp_path / "cut", tmp_path / "whole") == 0
    assert whole_file(tmp_path / "whole") == (tmp_path / "all.ckpt").read_bytes()
    # The weights can still be converted; the state is left out.
    words = ("--to", "hf", "--model-config", tmp_path / "model/config.json")
    assert checkpoint("convert", tmp_path / "all.ckpt", tmp_path / "hf", *words) == 0


def test_refusals(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint("split", source, tmp_path / "cut", "--layout", "mp2") == 0
    cases = [
        (("split", tmp_path / "cut", tmp_path / "o", "--layout", "mp2"), "is sliced already"),
        (("split", source, tmp_path / "o"), "Say how to slice"),
        (("split", source, tmp_path / "o", "--layout", "mp2", "--to-strategy", "x"), "Say how to slice"),
        (("split", source, tmp_path / "o", "--layout", "dp3,ep2"), "does not divide"),
        (("split", source, tmp_path / "o", "--to-strategy", tmp_path), "holds no strategy files"),
        (("split", source, source, "--layout", "mp2"), "exists already"),
        (("merge", tmp_path / "cut", source), "exists already"),
    ]
    for words, message in cases:
        assert checkpoint(*words) in (1, 2), words
        assert message in capsys.readouterr().err, words
    (tmp_path / "cut/strategy/ckpt_strategy_rank_1.ckpt").write_bytes(b"\xff\xff")
    assert checkpoint("merge", tmp_path / "cut", tmp_path / "o") == 1
    assert "is no strategy file" in capsys.readouterr().err


def test_a_rank_that_is_missing_is_not_passed_over(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two ranks one is left, which looks like a whole checkpoint."""
    assert checkpoint("split", source, tmp_path / "cut", "--layout", "mp2") == 0
    shutil.rmtree(tmp_path / "cut/ms/rank_1")
    config = ("--model-config", source / "config.json")
    for place in (tmp_path / "cut", tmp_path / "cut/ms"):
        assert checkpoint("merge", place, tmp_path / "whole") == 1
        assert "has files of 1 ranks; the strategy describes 2" in capsys.readouterr().err
    assert checkpoint("convert", tmp_path / "cut", tmp_path / "hf", "--to", "hf", *config) == 1
    assert "has files of 1 ranks; the strategy describes 2" in capsys.readouterr().err
    assert not (tmp_path / "whole").exists()


def test_sources_of_another_format(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("split", "reshard"):
        assert checkpoint(verb, tmp_path / "model", tmp_path / "o", "--layout", "mp2") == 1
        assert "is no MindSpore checkpoint. Write one, sliced at once" in capsys.readouterr().err
        assert checkpoint(verb, "demo", tmp_path / "o", "--layout", "mp2") == 1
        assert "There is no demo. Name a MindSpore file" in capsys.readouterr().err


def test_json_and_multi_axis_strategies(tmp_path: Path) -> None:
    """The JSON form, and a dimension cut by two device axes."""
    layout = {"dev_matrix": [2, 2], "opt_weight_shard_step": 0, "opt_weight_shard_size": 0}
    content = {
        "parallel_strategy_item": {"op": {"stage": 0}},
        "parallel_layout_item": {
            "a": {**layout, "tensor_map": [[1, 0], [-1]]},
            "b": {**layout, "tensor_map": [0, -1]},
        },
    }
    (tmp_path / "s.json").write_text(json.dumps(content))
    strategy = read_strategy(tmp_path / "s.json")
    a, b = strategy.stages[0]["a"], strategy.stages[0]["b"]
    assert [a.window(rank, (8, 3)) for rank in range(4)] == [((2 * n, 2 * n + 2), (0, 3)) for n in range(4)]
    assert [b.window(rank, (8, 3))[0] for rank in range(4)] == [(0, 4), (4, 8), (0, 4), (4, 8)]
    (tmp_path / "s.ckpt").write_bytes(strategy_files(strategy)["ckpt_strategy_rank_0.ckpt"])
    assert read_strategy(tmp_path / "s.ckpt") == strategy
