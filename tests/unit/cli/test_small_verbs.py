"""Verbs that hand over to one package: doctor, tokenizer, data, eval, train."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from telechat.checkpoint import resolve_model
from telechat.cli.main import main
from telechat.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[3]


def test_doctor_shows_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in (
        "torch",
        "cpu",
        "GiB",
        "auto takes",
        "kernels",
        "oneDNN",
        "accelerator build",
        "sdpa",
        "flash",
        "reference",
        "deepspeed",
        "pip install",
        "ASCEND_HOME_PATH",
    ):
        assert word in out


def test_doctor_knows_every_extra() -> None:
    """By a package that the extra asks for, under the name that pip knows it by."""
    from telechat.cli.doctor import EXTRAS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert EXTRAS.keys() == extras.keys()
    for extra, package in EXTRAS.items():
        assert package in {requirement.partition(">=")[0] for requirement in extras[extra]}


def test_doctor_accepts_a_sound_folder(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tiny_model_folder)]) == 0
    out = capsys.readouterr().out
    assert "complete" in out and "2 layers" in out
    model_part = out[out.index("\nmodel\n") :]
    assert "attention auto" in model_part and "takes " in model_part


def test_doctor_names_what_would_run_the_model(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from telechat.engine import LLM
    from telechat.ops.cpu import library

    def executor_row() -> str:
        assert main(["doctor", str(tiny_model_folder)]) == 0
        [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  executor ")]
        return row

    used = LLM(tiny_model_folder).executor.describe()
    assert ("CPU kernels" in used) == ("CPU kernels on cpu, float32" in executor_row())
    monkeypatch.setattr(library, "_attempt", lambda: "no C compiler was found")
    assert "torch modules on cpu (no C compiler was found), float32" in executor_row()


def test_doctor_lists_problems(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert main(["doctor", str(folder)]) == 1
    out = capsys.readouterr().out
    assert out.count("  problem") == 2 and "not usable" in out


def test_doctor_notices_a_tokenizer_too_large(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from telechat.tokenizer.train import train_tokenizer

    folder = tmp_path / "misfit"
    shutil.copytree(tiny_model_folder, folder)
    train_tokenizer([chr(0x4E00 + index) * 2 for index in range(200)], vocab_size=400, out_folder=folder)
    assert main(["doctor", str(folder)]) == 1
    assert "400 entries" in capsys.readouterr().out


def test_tokenizer_show(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "show", str(tiny_model_folder)]) == 0
    out = capsys.readouterr().out
    assert "300" in out and "<_user>" in out


def test_tokenizer_encode(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tokenizer", "encode", str(tiny_model_folder), "--text", "<_user>hi"]
    assert main(words) == 0
    literal = json.loads(capsys.readouterr().out)
    assert literal == load_tokenizer(tiny_model_folder).encode("<_user>hi")
    assert literal != load_tokenizer(resolve_model("demo")).encode("<_user>hi")
    assert main([*words, "--parse-special"]) == 0
    parsed = json.loads(capsys.readouterr().out)
    assert 4 not in literal and parsed[0] == 4
    assert main([*words, "--pieces"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(literal)


def test_tokenizer_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "a.txt"
    text.write_text("颜色味道用途，生抽老抽的区别。" * 20 + "\nhello world\n" * 5, encoding="utf-8")
    rows = tmp_path / "b.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "鸡兔同笼鸡兔同笼"}]}\n', encoding="utf-8")
    sizes = {}
    for run_length in ("1", "3"):
        folder = tmp_path / f"out{run_length}"
        words = ["tokenizer", "train", str(text), str(rows), "--vocab-size", "300", "--output", str(folder)]
        assert main([*words, "--max-han-run", run_length, "--seed", "1"]) == 0
        assert capsys.readouterr().out.strip() == str(folder)
        sizes[run_length] = (folder / "tokenizer.json").read_text(encoding="utf-8")
    assert sizes["1"] != sizes["3"]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("no.txt", None, "No such file"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_tokenizer_train_refuses(
    tmp_path: Path, name: str, content: bytes | None, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert (
        main(["tokenizer", "train", str(path), "--vocab-size", "400", "--output", str(tmp_path / "o")]) == 2
    )
    assert part in capsys.readouterr().err


def test_data_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed, split in (("1", "train"), ("1", "train"), ("2", "train"), ("1", "test")):
        path = tmp_path / "rows.jsonl"
        words = ["data", "demo", "--output", str(path), "--rows", "20", "--seed", seed, "--split", split]
        assert main(words) == 0
        texts.append(path.read_text(encoding="utf-8"))
    assert texts[0] == texts[1] and len({*texts}) == 3
    assert all(len(text.splitlines()) == 20 for text in texts)
    assert main(["data", "demo", "--output", str(path), "--rows", "5", "--task", "arithmetic"]) == 0
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {row["task"] for row in rows} == {"arithmetic"}


def test_eval_demo(tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    table = tmp_path / "table.md"
    words = ["eval", "demo", str(tiny_model_folder), "--rows", "2", "--task", "arithmetic", "--seed", "5"]
    # A random model answers nothing right, so the goal is missed.
    assert main([*words, "--json", str(report), "--markdown", str(table)]) == 1
    assert "arithmetic" in capsys.readouterr().out and "arithmetic" in table.read_text(encoding="utf-8")
    record = json.loads(report.read_text(encoding="utf-8"))
    assert record["seed"] == 5 and record["passed"] is False
    assert [task["num_rows"] for task in record["tasks"]] == [2]


def test_eval_options_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rows run at once, and the loading options; greedy whatever the folder says."""
    import telechat.engine

    seen: dict[str, object] = {}

    class Stop(Exception):
        pass

    def fake(model: str, **settings: object) -> None:
        seen.update(settings, model=model)
        raise Stop

    monkeypatch.setattr(telechat.engine, "LLM", fake)
    with pytest.raises(Stop):
        main(
            ["eval", "demo", "some/model", "--max-batch-size", "7", "--dtype", "bfloat16", "--device", "cpu"]
        )
    assert (seen["model"], seen["max_batch_size"], seen["dtype"]) == ("some/model", 7, "bfloat16")


def test_tokenizer_train_seed_changes_the_cuts(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("颜色味道用途生抽老抽的区别红烧凉拌炒菜上色提鲜咸淡浓稀" * 30, encoding="utf-8")
    files = []
    for seed in ("1", "1", "2"):
        folder = tmp_path / f"out{len(files)}"
        words = ["tokenizer", "train", str(text), "--vocab-size", "330", "--output", str(folder)]
        assert main([*words, "--seed", seed]) == 0
        files.append((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert files[0] == files[1] != files[2]


def test_train_hands_over_file_and_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    import telechat.train.run

    seen = []
    monkeypatch.setattr(
        telechat.train.run, "main", lambda config, overrides: seen.append((config, overrides))
    )
    recipe = str(ROOT / "recipes" / "demo.yaml")
    words = ["--schedule.total-steps", "3", "--output.folder=x", "--seed", "7", "--precision", "fp32"]
    assert main(["train", "--config", recipe, *words]) == 0
    fields = {"schedule.total_steps": "3", "output.folder": "x", "seed": "7", "precision": "fp32"}
    assert seen == [(recipe, fields)]


def test_train_names_an_unknown_field(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes" / "demo.yaml")
    assert main(["train", "--config", recipe, "--schedule.total-stesp", "3"]) == 1
    assert "Did you mean schedule.total_steps?" in capsys.readouterr().err
