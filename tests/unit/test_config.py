"""Settings: defaults, file, flags; every mistake named with key, value and expectation."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from telechat.config import dotted_keys, from_mapping, load_config, to_mapping, to_yaml
from telechat.errors import ConfigError


class Engine(enum.Enum):
    NATIVE = "native"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    warmup_steps: int = 10
    kind: Literal["cosine", "linear"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str
    learning_rate: float = 1e-3
    steps: int | None = None
    compile: bool = False
    files: tuple[str, ...] = ()
    output: Path = Path("out")
    engine: Engine = Engine.NATIVE
    labels: dict[str, int] = field(default_factory=dict)
    schedule: Schedule = Schedule()


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_order_is_default_file_flag(tmp_path: Path) -> None:
    path = write(tmp_path, "name: 实验\nsteps: 5\nlearning_rate: 2e-5\nschedule: {warmup_steps: 3}\n")
    run = load_config(Run, path, {"steps": "7", "schedule.kind": "linear"})
    assert (run.name, run.learning_rate, run.steps) == ("实验", 2e-5, 7)
    assert run.schedule == Schedule(warmup_steps=3, kind="linear")
    assert run.compile is False


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("compile", "True", True),
        ("compile", "off", False),
        ("steps", "none", None),
        ("files", "a.jsonl,b.jsonl", ("a.jsonl", "b.jsonl")),
        ("files", "[a.jsonl, 'b.jsonl']", ("a.jsonl", "b.jsonl")),
        ("output", "there", Path("there")),
        ("engine", "other", Engine.OTHER),
        ("learning-rate", "3", 3.0),
        ("labels.x", "4", {"x": 4}),
    ],
)
def test_flags_become_the_type_of_the_field(key: str, text: str, expected: object) -> None:
    run = load_config(Run, None, {"name": "n", key: text})
    assert getattr(run, key.split(".")[0].replace("-", "_")) == expected


def test_fixed_tuple_of_a_section() -> None:
    assert load_config(Run, None, {"name": "n", "schedule.betas": "0.8,0.9"}).schedule.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: n\nstesp: 3\n", ["stesp", "steps"]),
        ("name: n\nschedule: {warmup: 3}\n", ["schedule.warmup", "schedule.warmup_steps"]),
        ("name: n\nsteps: many\n", ["steps", "'many'", "a whole number or nothing"]),
        ("name: n\nsteps: 1.5\n", ["steps", "1.5"]),
        ("name: n\nsteps: true\n", ["steps", "True"]),
        ("name: n\ncompile: 1\n", ["compile", "true or false"]),
        ("name: 3\n", ["name", "text"]),
        ("name: n\nschedule: 3\n", ["schedule", "a mapping"]),
        ("name: n\nschedule: {kind: cosin}\n", ["schedule.kind", "'cosin'", "cosine, linear"]),
        ("name: n\nengine: fast\n", ["engine", "native, other"]),
        ("name: n\nfiles: a\n", ["files", "a list of text"]),
        ("name: n\nlabels: {a: b}\n", ["labels.a", "'b'"]),
        ("steps: 3\n", ["lacks name"]),
        ("- a\n", ["list", "mapping"]),
        ("name: [\n", ["line 2", "YAML"]),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path)
    for part in [*parts, "run.yaml"]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("warmup_steps", "schedule.warmup_steps"),
        ("schedule.knd", "schedule.kind"),
        ("shedule.kind", "schedule.kind"),
        ("learning_rat", "learning_rate"),
        ("steps.more", "steps"),
    ],
)
def test_unknown_flag_names_the_nearest(key: str, guess: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, None, {"name": "n", key: "1"})
    assert f"Did you mean {guess}?" in str(caught.value)


def test_missing_file_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load_config(Run, "nowhere.yaml")


def test_yaml_round_trip(tmp_path: Path) -> None:
    run = Run(name="实验", steps=3, files=("a",), engine=Engine.OTHER, labels={"x": 1}, output=Path("p"))
    text = to_yaml(run)
    assert "实验" in text
    assert load_config(Run, write(tmp_path, text)) == run
    assert from_mapping(Run, to_mapping(run)) == run


def test_dotted_keys() -> None:
    assert set(dotted_keys(Run)) >= {"name", "schedule.kind"}
    assert "schedule" not in set(dotted_keys(Run))


@dataclass(frozen=True, kw_only=True)
class Table:
    scheme: Literal["stretched", "none"] | None = None
    length: int | None = 5


def test_a_flag_says_none_for_nothing_unless_it_is_a_word_to_choose() -> None:
    table = load_config(Table, None, {"scheme": "none", "length": "none"})
    assert (table.scheme, table.length) == ("none", None)
    assert load_config(Table, None, {"scheme": "null"}).scheme is None
