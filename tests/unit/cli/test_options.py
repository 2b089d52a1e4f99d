"""Options that several verbs share: they arrive with each verb, and no verb that has them is left out."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.cli.test_engine_options import VERBS, LoadedError, loaded

from telechat.cli.main import main
from telechat.cli.parser import CommandParser
from telechat.cli.verbs import VERBS as ALL_VERBS
from telechat.engine import SamplingParams
from telechat.quant import QuantizeConfig

__all__ = ["loaded"]

SAMPLING_VERBS = {name: VERBS[name] for name in ("chat", "generate")}
BATCH_VERBS = {name: VERBS[name] for name in ("generate", "serve", "eval demo")}


def verbs_with(option: str) -> set[str]:
    """The verbs that have an option, as typed."""
    found = set()
    for verb in ALL_VERBS:
        parser = CommandParser("telechat", summary="x", examples=[])
        import_module(verb.module).add_arguments(parser)
        if any(option in action.option_strings for action in parser._actions):
            found.add(" ".join(verb.words))
    return found


@pytest.mark.parametrize(
    ("option", "verbs"),
    [("--block-size", VERBS), ("--temperature", SAMPLING_VERBS), ("--max-batch-size", BATCH_VERBS)],
)
def test_every_verb_is_in_the_tables(option: str, verbs: dict[str, list[str]]) -> None:
    assert verbs_with(option) == verbs.keys()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--device cpu", "device", "cpu"),
        ("--dtype float16", "dtype", "float16"),
        ("--attention sdpa", "attention", "sdpa"),
        ("--max-model-len 77", "max_model_len", 77),
    ],
)
def test_loading_options_arrive(
    loaded: dict[str, Any], verb: str, words: str, name: str, value: object
) -> None:
    with pytest.raises(LoadedError):
        main(VERBS[verb])
    assert loaded[name] != value
    with pytest.raises(LoadedError):
        main([*VERBS[verb], *words.split()])
    assert loaded[name] == value


@pytest.mark.parametrize("verb", BATCH_VERBS)
def test_the_size_of_a_batch_arrives(loaded: dict[str, Any], verb: str) -> None:
    with pytest.raises(LoadedError):
        main([*BATCH_VERBS[verb], "--max-batch-size", "5"])
    assert loaded["max_batch_size"] == 5


@pytest.mark.parametrize("verb", VERBS)
def test_trust_remote_code_is_said_to_do_nothing(
    loaded: dict[str, Any], verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*VERBS[verb], "--log-level", "info"]
    for flags, is_said in (
        ([], False),
        (["--trust-remote-code"], True),
        (["--trust_remote_code=False"], False),
    ):
        with pytest.raises(LoadedError):
            main([*words, *flags])
        assert ("--trust-remote-code has no effect" in capsys.readouterr().err) == is_said


@pytest.mark.parametrize("verb", VERBS)
def test_register_path_is_said_to_do_nothing(
    loaded: dict[str, Any], verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, is_said in (([], False), (["--register_path", "research/telechat2"], True)):
        with pytest.raises(LoadedError):
            main([*VERBS[verb], "--log-level", "info", *flags])
        said = "--register-path research/telechat2 has no effect" in capsys.readouterr().err
        assert said == is_said


class FakeLLM:
    """Answers nothing and keeps the sampling settings it was asked with."""

    name = "fake"
    max_model_len = 100
    default_params = SamplingParams()
    tokenizer = SimpleNamespace(supports_system=True, apply_chat_template=lambda messages: [1, 2])

    def __init__(self) -> None:
        self.params: list[SamplingParams] = []

    def chat(self, messages: object, params: SamplingParams, **options: Any) -> Iterator[Any]:
        self.params.append(params)
        return iter(())

    def generate(self, prompts: object, params: SamplingParams, **options: Any) -> list[Any]:
        self.params.append(params)
        return [SimpleNamespace(text="")]


@pytest.mark.parametrize("verb", SAMPLING_VERBS)
@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--max-new-tokens 5", "max_tokens", 5),
        ("--max-output-length 5", "max_tokens", 5),
        ("--temperature 0.5", "temperature", 0.5),
        ("--top-k 7", "top_k", 7),
        ("--top-p 0.9", "top_p", 0.9),
        ("--repetition-penalty 1.2", "repetition_penalty", 1.2),
        ("--seed 3", "seed", 3),
        ("--stop A --stop B", "stop", ("A", "B")),
    ],
)
def test_sampling_options_arrive(
    monkeypatch: pytest.MonkeyPatch, verb: str, words: str, name: str, value: object
) -> None:
    llm = FakeLLM()
    monkeypatch.setattr("telechat.engine.LLM", lambda model, **settings: llm)
    assert main(SAMPLING_VERBS[verb]) == main([*SAMPLING_VERBS[verb], *words.split()]) == 0
    plain = SamplingParams()
    assert getattr(plain, name) != value
    assert llm.params == [plain, plain.replace(**{name: value})]


def test_quantize_options_arrive(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each alone beside the defaults; what they do is tested with the folders they make."""
    seen: list[Any] = []

    def fake(model: str, out: Path, config: object, **said: object) -> Path:
        assert said.keys() == {"calibration", "on_progress", "on_layer"}
        seen.append((model, out, config))
        return out

    monkeypatch.setattr("telechat.quant.quantize", fake)
    words = ["quantize", "run", "some/model", "out"]
    for flags in ("", "--bits 8", "--group-size 128"):
        assert main([*words, *flags.split()]) == 0
        assert capsys.readouterr().out == "out\n"
    changes: tuple[dict[str, Any], ...] = ({}, {"bits": 8}, {"group_size": 128})
    assert seen == [("some/model", Path("out"), QuantizeConfig(**change)) for change in changes]
    assert main([*words, "--method", "other"]) == 1
    assert "Unknown quantisation method 'other'" in capsys.readouterr().err
