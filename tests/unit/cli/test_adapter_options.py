"""`--lora` and what goes with it: every verb answers with the adapter, and refuses what makes no sense."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.checkpoint.adapters import ALL_LAYERS, random_adapter
from tests.unit.serve.serve_fakes import FakeEngine

import telechat.checkpoint
import telechat.engine
import telechat.serve.server
from telechat.checkpoint import AdapterConfig, read_config, resolve_model, write_adapter
from telechat.cli.adapter_options import load_adapters
from telechat.cli.main import main
from telechat.engine import LLM, SamplingParams
from telechat.errors import ConfigError
from telechat.serve.settings import ServeSettings

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=False)
WORDS = ("--temperature", "0", "--max-new-tokens", "6")


@pytest.fixture(scope="module")
def poet(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "poet"
    config = read_config(tiny_model_folder)
    settings = AdapterConfig(r=5, lora_alpha=10, target_modules=ALL_LAYERS)
    write_adapter(random_adapter(config, settings=settings), folder, config)
    return folder


@pytest.fixture(scope="module")
def texts(tiny_model_folder: Path, poet: Path) -> tuple[str, str]:
    """Answers to one question, without and with the adapter."""
    llm = LLM(tiny_model_folder, adapters={"poet": poet})
    messages = [{"role": "user", "content": "hello"}]
    found = [llm.chat(messages, GREEDY, adapter=name).text for name in (None, "poet")]
    assert found[0] != found[1]
    return found[0], found[1]


def test_generate(
    tiny_model_folder: Path,
    poet: Path,
    texts: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["generate", str(tiny_model_folder), "--input-text", "hello", *WORDS]
    assert main(command) == 0
    assert capsys.readouterr().out == texts[0] + "\n"
    for named in (f"poet={poet}", str(poet)):
        assert main([*command, "--lora", named]) == 0
        assert capsys.readouterr().out == texts[1] + "\n"
    rows, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"input": "hello"}\n')
    files = ["--input-file", str(rows), "--output", str(out)]
    assert main(["generate", str(tiny_model_folder), *files, *WORDS, "--lora", str(poet)]) == 0
    assert json.loads(out.read_text())["output"] == texts[1]


def test_chat(
    tiny_model_folder: Path, poet: Path, texts: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["chat", str(tiny_model_folder), "--prompt", "hello", *WORDS]
    assert main([*command, "--lora", f"poet={poet}"]) == 0
    assert capsys.readouterr().out == texts[1] + "\n"


def test_rows_of_a_batch_file_choose(
    tiny_model_folder: Path, poet: Path, texts: tuple[str, str], tmp_path: Path
) -> None:
    rows, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 6}
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": {**body, **name}}
        for number, name in enumerate(({}, {"model": "poet"}, {"model": "novelist"}))
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--input-file", str(rows), "--output", str(out), "--lora", f"poet={poet}"]
    assert main(["generate", str(tiny_model_folder), *words]) == 0
    found = [json.loads(line)["response"] for line in out.read_text().splitlines()]
    assert [one["status_code"] for one in found] == [200, 200, 404]
    assert [one["body"]["choices"][0]["message"]["content"] for one in found[:2]] == list(texts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora", "=x"], "not NAME=PATH"),
        (["--lora", "x="], "not NAME=PATH"),
        (["--lora", "a=x", "--lora", "a=y"], "names 'a' twice"),
        (["--lora", "a=x", "--lora", "b=y"], "2 adapters are named"),
        (["--lora", "a=/nowhere"], "Adapter 'a': /nowhere has no adapter_config.json"),
        (["--max-lora-rank", "0"], "--max-lora-rank"),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_what_makes_no_sense_is_refused(
    tiny_model_folder: Path, verb: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    question = "--input-text" if verb == "generate" else "--prompt"
    assert main([verb, str(tiny_model_folder), question, "hello", *words]) != 0
    assert message in capsys.readouterr().err


def test_the_rank_limit_is_obeyed(
    tiny_model_folder: Path, poet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["chat", str(tiny_model_folder), "--prompt", "hello", "--lora", str(poet), "--max-lora-rank"]
    assert main([*command, "4"]) == 1
    assert "rank 5; at most 4" in capsys.readouterr().err
    assert main([*command, "5"]) == 0


class Served:
    """Stands in for the server and its engine: keeps what both are started with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = ServeSettings()
        self.loaded: dict[str, Any] = {}
        self.engine = FakeEngine()
        monkeypatch.setattr(telechat.serve.server, "run_server", self.run)
        monkeypatch.setattr(telechat.engine, "LLM", self.load)
        monkeypatch.setattr(telechat.engine.AsyncEngine, "spawn", self.spawn)
        monkeypatch.setattr(telechat.checkpoint, "resolve_model", lambda name: resolve_model("demo"))

    def run(self, load: Any, settings: ServeSettings) -> int:
        self.settings = settings
        load()
        return 0

    def load(self, model: str, **settings: Any) -> None:
        self.loaded = settings

    def spawn(self, load: Any, tokenizer: Any, max_pending: int) -> FakeEngine:
        load()
        return self.engine


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    yield Served(monkeypatch)


def test_serve(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 0
    assert served.settings.lora_dir is None and not served.engine.folders
    assert not {"max_loras", "max_lora_rank", "reserved_loras"} & set(served.loaded)
    assert main(["serve", "--lora", "a=x", "--max-loras", "3"]) == 0
    assert served.loaded["reserved_loras"] == 1  # no other can come
    words = ["--lora", "a=x", "--lora", "b=y", "--max-loras", "3", "--max-lora-rank", "7"]
    assert main(["serve", *words, "--lora-dir", str(tmp_path)]) == 0
    assert served.engine.folders == {"a": "x", "b": "y"}
    assert (served.loaded["max_loras"], served.loaded["max_lora_rank"]) == (3, 7)
    assert served.loaded["reserved_loras"] == 3
    # Not loaded with the model: an engine that is started again must not need these folders.
    assert "adapters" not in served.loaded
    assert served.settings.lora_dir == tmp_path
    assert main(["serve", "--lora-dir", str(tmp_path / "nowhere")]) == 2
    assert "--lora-dir does not exist" in capsys.readouterr().err
    assert main(["serve", "--lora", "fake=x"]) == 1
    assert "has the name of the model" in capsys.readouterr().err


def test_an_adapter_that_cannot_be_used_is_named() -> None:
    engine = FakeEngine()
    engine.refusal = ConfigError("x has no adapter_config.json.", hint="Look again.")
    with pytest.raises(ConfigError, match=r"Adapter 'a': x has no adapter_config"):
        asyncio.run(load_adapters(engine, {"a": "x"}, "fake"))  # type: ignore[arg-type]
