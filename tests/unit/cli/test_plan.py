"""`telechat plan`: what is shown, what options change, recipes, runs that have been, and its page."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.unit.deploy.command_lines import parse_command
from tests.unit.train.plan.test_plan_layouts import PUBLISHED, published

from telechat.cli.main import main
from telechat.cli.plan import make_request
from telechat.train.plan.search import longest_length

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
BASE = ("telechat2-7b", "--device-memory", "40GB")
RUN_OPTIONS = [
    ["--task", "generate"],
    ["--task", "lora"],
    ["--length", "4096"],
    ["--rows", "2"],
    ["--micro-batches", "2"],
    ["--precision", "fp32"],
    ["--attention", "reference"],
    ["--recompute", "full"],
    ["--optimizer", "adamw-8bit"],
    ["--packing"],
    ["--program", "original"],
]

RECIPE = """
model: {{start_from: {model}}}
data: {{train_file: none.jsonl, max_length: 64}}
batch: {{tokens_per_step: 512, micro_batches: 2, packing: true}}
output: {{folder: {folder}}}
precision: bf16
device: cpu
"""


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The values that `--json` prints."""
    main(["plan", *words, "--json"])
    return dict(json.loads(capsys.readouterr().out))


def test_a_run_on_a_cpu_may_hold_what_it_has_freed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = []
    for line in ("", "return_freed_memory: true\n", "device: auto\n"):
        recipe = tmp_path / "recipe.yaml"
        text = RECIPE.format(model="demo", folder=tmp_path)
        recipe.write_text(text.replace("device: cpu\n", line) if "auto" in line else text + line)
        assert main(["plan", "--config", str(recipe)]) == 0
        said.append("half as much again" in capsys.readouterr().out)
    assert said == [True, False, False]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plan", "telechat2-7b", "--layout", "dp8", "--recompute", "full", "--device-memory", "80GB"])
        == 0
    )
    out = capsys.readouterr().out
    for word in ("weights", "gradients", "optimiser", "activations", "logits", "together", "Fits", "Longest"):
        assert word in out
    assert "dp8,zero3 (8 devices)" in out


def test_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "telechat2-7b", "--device-memory", "40GB"]) == 1
    out = capsys.readouterr().out
    assert "Does not fit" in out and "Nearest that fits: --layout " in out


def test_the_suggestion_fits(capsys: pytest.CaptureFixture[str]) -> None:
    near = plan(capsys, *BASE)["nearest"]
    words = ["--layout", near["layout"], "--recompute", near["recompute"]]
    again = plan(capsys, *BASE, *words, "--micro-batches", str(near["micro_batches"]))
    assert again["fits"] and again["device_bytes"] == near["device_bytes"]


def test_exit_code_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a size of devices there is no verdict."""
    assert main(["plan", "telechat2-115b"]) == 0
    assert "Fits" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        *RUN_OPTIONS,
        ["--task", "lora", "--lora-rank", "64"],
        ["--task", "lora", "--lora-targets", "query"],
        ["--task", "lora", "--quantize", "int4"],
        ["--layout", "dp8"],
        ["--device", "cpu"],
    ],
    ids=" ".join,
)
def test_every_option_changes_the_plan(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model = ["telechat-7b"]
    before = words[:2] if len(words) == 4 or words[-1] == "int4" else []
    changed, plain = plan(capsys, *model, *words), plan(capsys, *model, *before)
    assert changed["bytes"] != plain["bytes"] or changed["host_bytes"] != plain["host_bytes"]


def test_sizes_of_devices_and_host(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("telechat2-3b", "--layout", "dp1,offload", "--recompute", "full")
    small, large = (plan(capsys, *words, "--device-memory", size) for size in ("1GB", "40GB"))
    assert (small["fits"], large["fits"]) == (False, True)
    assert large["longest_length"] > 2048 > small["longest_length"]
    assert not plan(capsys, *words, "--device-memory", "40GB", "--host-memory", "10GB")["fits"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give one of MODEL"),
        (["telechat2-7b", "--config", "x.yaml"], "Give one of MODEL"),
        (["telechat2-8b"], "Published sizes: telechat-7b"),
        (["telechat2-7b", "--layout", "tp3"], "3"),
        (["telechat2-7b", "--quantize", "int8"], "trains all weights"),
        (["telechat2-7b", "--lora-rank", "4"], "go with --task lora"),
        (["--after", "."], "has no run.yaml"),
        *(
            (["--config", "x.yaml", *words], f"{words[0]} goes with MODEL; x.yaml says it itself")
            for words in (*RUN_OPTIONS, ["--lora-rank", "4"], ["--lora-targets", "a"], ["--quantize", "int4"])
        ),
    ],
)
def test_what_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["TeleAI/TeleChat2-7B", "telechat2-7b"])
def test_published_sizes_by_any_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(capsys, name)["bytes"]["optimiser"] > 5e10


def test_folders_and_files(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = (
        plan(capsys, str(path)) for path in (tiny_model_folder, tiny_model_folder / "config.json")
    )
    assert folder == file and folder["device_bytes"] < 2e9


@pytest.fixture
def recipe(tiny_model_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=tiny_model_folder, folder=tmp_path / "run"), encoding="utf-8")
    return path


def test_a_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = plan(capsys, "--config", str(recipe))
    assert (shown["length"], shown["rows_of_micro_batch"], shown["micro_batches"]) == (64, 4, 2)
    assert plan(capsys, "--config", str(recipe), "--layout", "dp2")["micro_batches"] == 1


def test_a_recipe_downloads_nothing(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hub id of a published size stands for it; any other has to be on this machine."""
    for name, code in (("TeleAI/TeleChat2-7B", 0), ("somebody/something", 2)):
        recipe.write_text(RECIPE.format(model=name, folder=tmp_path), encoding="utf-8")
        assert main(["plan", "--config", str(recipe)]) == code
    assert "neither on this machine" in capsys.readouterr().err


def test_a_recipe_of_preferences(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(recipe.read_text(encoding="utf-8") + "preference: {method: dpo}\n", encoding="utf-8")
    assert main(["plan", "--config", str(recipe)]) == 1
    assert "preference" in capsys.readouterr().err


def test_after_a_run(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.yaml").write_text(recipe.read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["plan", "--after", str(run)]) == 2
    assert "records no memory" in capsys.readouterr().err
    rows = [
        {"step": 1, "peak_memory_bytes": 100},
        {"step": 2, "peak_memory_bytes": 1_000_000_000},
        {"step": 3},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shown = plan(capsys, "--after", str(run))
    assert shown["measured_bytes"] == 1_000_000_000
    assert shown["predicted_by_measured"] == pytest.approx(shown["device_bytes"] / 1e9, abs=1e-4)
    assert main(["plan", "--after", str(run)]) == 0
    assert "The run measured 1.00 GB" in capsys.readouterr().out


def page_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("telechat ")]


@pytest.mark.parametrize("line", page_commands())
def test_the_pages_commands_parse(line: str) -> None:
    args = parse_command(shlex.split(line))
    if args.model:
        make_request(args)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_pages_table_is_what_is_planned(name: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
    numbers = [int(cell) for cell in row.split("|")[2:5]]
    lengths = [longest_length(*published(name, program)[:2]) for program in ("original", "telechat")]
    assert numbers == [published(name, "original")[2], *lengths]


def test_a_recipe_is_planned_without_its_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = Path(__file__).resolve().parents[3] / "recipes" / "mindformers-35b.yaml"
    assert main(["plan", "--config", str(recipe), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["devices"] == 16 and planned["length"] == 8192
    other = tmp_path / "recipe.yaml"
    other.write_text(recipe.read_text(encoding="utf-8").replace("TeleAI/TeleChat2-35B", "someone/model"))
    assert main(["plan", "--config", str(other)]) == 2
    assert "someone/model" in capsys.readouterr().err
