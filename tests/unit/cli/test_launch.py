"""`telechat launch`: options, a hostfile and msrun's words become machines; the processes are not started."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from telechat.cli import launch as verb
from telechat.cli.main import main
from telechat.cli.parser import CommandParser
from telechat.errors import ConfigError, UsageError
from telechat.train.distributed import launcher, machines
from telechat.train.distributed.machines import Machines, from_hostfile, from_msrun

COMMAND = ("--", "train", "--config", "x.yaml", "--schedule.total_steps", "3")
MSRUN = "16 8 192.168.1.1 8118 0 output/msrun_log False 300"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Machines, list[str], int]]:
    """What the launcher was asked for."""
    found: list[tuple[Machines, list[str], int]] = []

    def launch(where: Machines, command: list[str], *, max_restarts: int) -> None:
        found.append((where, command, max_restarts))

    monkeypatch.setattr(launcher, "launch", launch)
    for name in ("SHARED_PATHS", *verb._WITHOUT_EFFECT):
        monkeypatch.delenv(name, raising=False)
    return found


def test_every_option_arrives(launched: list[Any], tmp_path: Path) -> None:
    options = ["--nnodes", "2", "--nproc-per-node", "4", "--node-rank", "1", "--master-addr", "10.0.0.1"]
    options += ["--master-port", "2950", "--timeout", "60", "--log-dir", str(tmp_path), "--max-restarts", "3"]
    assert main(["launch", *options, *COMMAND]) == 0
    [(where, command, max_restarts)] = launched
    assert where == Machines(
        nnodes=2,
        nproc_per_node=4,
        node_rank=1,
        master_addr="10.0.0.1",
        master_port=2950,
        timeout_s=60,
        log_dir=tmp_path,
    )
    # The command's own words are its own affair: nothing in them is spelled anew.
    assert command == list(COMMAND[1:])
    assert max_restarts == 3


def test_one_process_without_accelerator(launched: list[Any]) -> None:
    assert main(["launch", "--", "doctor"]) == 0
    assert launched[0][0].nproc_per_node == 1


def test_words_of_msrun(launched: list[Any]) -> None:
    assert main(["launch", "--msrun", MSRUN, *COMMAND]) == 0
    where = launched[0][0]
    assert (where.nnodes, where.nproc_per_node, where.node_rank) == (2, 8, 0)
    assert (where.master_addr, where.master_port) == ("192.168.1.1", 8118)
    assert (where.timeout_s, where.log_dir) == (300, Path("output/msrun_log"))
    # The second machine changes the rank only.
    assert main(["launch", "--msrun", MSRUN, "--node-rank", "1", *COMMAND]) == 0
    assert launched[1][0].node_rank == 1


@pytest.mark.parametrize(("words", "processes"), [("8", 8), ("4 8119 logs True 60", 4)])
def test_words_of_msrun_for_one_machine(words: str, processes: int) -> None:
    found = Machines(**from_msrun(words))
    assert (found.nnodes, found.nproc_per_node) == (1, processes)


@pytest.mark.parametrize("words", ["", "8 8", "x", "16 3 h 1 0 logs False 9", "16 8 h 1 x logs False 9"])
def test_words_that_msrun_would_refuse(words: str) -> None:
    with pytest.raises(UsageError, match="--msrun"):
        from_msrun(words)


def test_hostfile(launched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hosts"
    file.write_text("# machines\nfirst slots=8\nsecond slots = 8\n\n", encoding="utf-8")
    monkeypatch.setattr(machines, "own_names", lambda: {"second"})
    assert main(["launch", "--hostfile", str(file), *COMMAND]) == 0
    where = launched[0][0]
    assert (where.nnodes, where.nproc_per_node, where.node_rank) == (2, 8, 1)
    assert (where.master_addr, where.master_port) == ("first", machines.DEFAULT_PORT)


def test_a_machine_that_the_hostfile_does_not_name(
    launched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "hosts"
    file.write_text("first slots=8\nsecond slots=8\n", encoding="utf-8")
    monkeypatch.setattr(machines, "own_names", lambda: {"third"})
    assert main(["launch", "--hostfile", str(file), *COMMAND]) == 1
    assert "third" in capsys.readouterr().err
    assert main(["launch", "--hostfile", str(file), "--node-rank", "1", *COMMAND]) == 0


@pytest.mark.parametrize("content", ["first\n", "a slots=8\nb slots=4\n", "", "a slots=0\n"])
def test_hostfiles_that_are_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="hosts"):
        from_hostfile(file)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "no command"),
        (["--", "launch", "--", "doctor"], "itself"),
        (["--", "trane"], "trane"),
        (["--nnodes", "2", "--node-rank", "2", "--master-port", "1", *COMMAND], "from 0 to 1"),
        (["--nnodes", "2", *COMMAND], "port"),
        (["--nnodes", "2", "--node-rank", "1", "--master-port", "1", *COMMAND], "--master-addr"),
        (["--hostfile", "x", "--msrun", "8", *COMMAND], "--msrun"),
    ],
)
def test_mistakes_are_named(
    words: list[str], named: str, launched: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", *words]) == 2
    assert named in capsys.readouterr().err
    assert not launched


def test_variables_of_the_original_scripts(
    launched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHARED_PATHS", f"{tmp_path},{tmp_path / 'missing'}")
    assert main(["launch", *COMMAND]) == 1
    assert "missing" in capsys.readouterr().err
    monkeypatch.setenv("SHARED_PATHS", str(tmp_path))
    monkeypatch.setenv("RANK_TABLE_FILE", "ranks.json")
    monkeypatch.setenv("ENABLE_CELL_REUSE", "1")
    assert main(["launch", *COMMAND]) == 0
    said = capsys.readouterr().err
    assert "RANK_TABLE_FILE is set; it has no effect" in said
    assert "ENABLE_CELL_REUSE is set; it has no effect" in said


def test_settings_without_options() -> None:
    parser = CommandParser("telechat launch", summary="x", examples=[])
    verb.add_arguments(parser)
    args: argparse.Namespace = parser.parse(["--", "doctor"])
    assert set(verb.machine_settings(args)) == {"nproc_per_node"}


def test_last_lines_are_those_that_a_terminal_shows(tmp_path: Path) -> None:
    path = launcher.worker_log(tmp_path, 3)
    path.write_text("one\nstep 1\rstep 2\n\n\x1b[2Kerror: it failed\n", encoding="utf-8")
    assert path.name == "worker_3.log"
    assert launcher.last_lines(path, 2) == ["step 2", "error: it failed"]
    assert launcher.last_lines(tmp_path / "none") == []
