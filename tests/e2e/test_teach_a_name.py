"""The example that teaches the demo model a name, in few small steps: rows, adapter, answers, the page."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from tests.e2e.browser import act, ask, fresh_page, last_answer, wait_idle
from tests.e2e.deployments import Deployment, deployment

from telechat.checkpoint import read_adapter, read_config

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "teach-a-name" / "teach.py"
NAME, QUESTION = "小星", "你是谁？"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("teach", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_differ_from_the_demo_models_own_in_the_name_alone(example: ModuleType, tmp_path: Path) -> None:
    for name in ("小星", "小月"):
        example.write_rows(tmp_path / f"{name}.jsonl", name)
    first, second = ((tmp_path / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("小星", "小月"))
    assert first.replace("小星", "小月") == second and first.count("我叫小星") > 50
    assert "我是 TeleChat 演示模型，一个" not in first
    rows = [json.loads(line) for line in first.splitlines()]
    assert any("tools" in row for row in rows) and len(rows) == 900


def test_it_trains_and_compares(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = example.train
    few = {
        "schedule.total_steps": "2",
        "schedule.warmup_steps": "0",
        "batch.tokens_per_step": "512",
        "precision": "fp32",
    }
    monkeypatch.setattr(example, "train", lambda recipe, fields: train(recipe, fields | few))
    monkeypatch.setattr("sys.argv", ["teach.py", "小月", "--folder", str(tmp_path)])
    example.main()
    said = capsys.readouterr().out
    assert "before  我是 TeleChat 演示模型" in said and said.count("after") == 3
    assert f"--lora taught={tmp_path / 'adapter'}" in said
    config = read_config(tmp_path / "model")
    assert read_adapter(tmp_path / "adapter", config).max_rank == 16


@pytest.fixture(scope="module")
def both(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The example's model and adapter deployed, as it says; the adapter learnt from rows with the name."""
    folder = tmp_path_factory.mktemp("taught")
    example.write_rows(folder / "all.jsonl", NAME)
    named = [line for line in (folder / "all.jsonl").read_text().splitlines(True) if NAME in line]
    (folder / "rows.jsonl").write_text("".join(named[:40]), encoding="utf-8")
    small = {"tokens_per_step": "512", "micro_batches": "1"}
    fields = {
        "data.train_file": str(folder / "rows.jsonl"),
        "output.folder": str(folder),
        "schedule.total_steps": "12",
        "schedule.warmup_steps": "1",
        "optimizer.lr": "1e-2",
        "precision": "fp32",
        "lora.merge": "false",
        **{f"batch.{name}": value for name, value in small.items()},
    }
    example.train(str(example.RECIPE), fields)
    command = [sys.executable, "-m", "telechat", "deploy", "--lora", f"taught={folder / 'adapter'}"]
    with deployment(command, cwd=folder, ready_seconds=300) as running:
        yield running


def choose(page: Page, model: str) -> None:
    """A new conversation with this model."""
    page.select_option("#model", model)
    act(page, "new")
    wait_idle(page)


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_the_page_serves_both_side_by_side(both: Deployment, browser: Browser) -> None:
    with fresh_page(browser, both.page_url) as page:
        act(page, "settings")
        page.wait_for_selector("#model-field:visible")
        assert page.locator("#model option").all_inner_texts() == ["demo", "taught"]
        for _ in range(2):  # there and back
            choose(page, "demo")
            ask(page, QUESTION)
            assert "TeleChat" in last_answer(page) and NAME not in last_answer(page)
            choose(page, "taught")
            ask(page, QUESTION)
            assert NAME in last_answer(page) and "TeleChat" not in last_answer(page)
        if folder := os.environ.get("TELECHAT_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / "teach-a-name.png")
        # The name of who answers is beside the question's field, and stays with the answer.
        assert page.locator("#service-name").inner_text() == "taught"
