"""SamplingParams refuses what it must, by field name, and reads generation configs as transformers does."""

from __future__ import annotations

import math
from typing import Any

import pytest

from telechat.engine import SamplingParams
from telechat.errors import RequestError

WRONG = [
    ("n", 0),
    ("n", 1.0),
    ("n", True),
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "hot"),
    ("top_k", -1),
    ("top_k", 2.5),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repetition_penalty", 0.0),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("max_tokens", 0),
    ("max_tokens", -5),
    ("max_total_tokens", 0),
    ("seed", -1),
    ("seed", 2**63),
    ("logprobs", -1),
    ("logprobs", 101),
    ("stop", ("",)),
    ("stop", ("fine", "x" * 1025)),
    ("stop", "text"),
    ("stop", (3,)),
    ("stop_token_ids", (-1,)),
    ("stop_token_ids", 3),
    ("logit_bias", {-1: 0.5}),
    ("logit_bias", {3: 101.0}),
    ("logit_bias", [3]),
    ("ignore_eos", 1),
    ("skip_special_tokens", "yes"),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={value!r}" for name, value in WRONG])
def test_wrong_value_names_its_field(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.parameter == name


def test_lists_are_taken_as_tuples() -> None:
    params = SamplingParams(stop=["a", "b"], stop_token_ids=[5])  # type: ignore[arg-type]
    assert params.stop == ("a", "b")
    assert params.stop_token_ids == (5,)


def test_replace_validates_again() -> None:
    with pytest.raises(RequestError, match="top_p"):
        SamplingParams().replace(top_p=3.0)


def test_split_gives_each_completion_a_seed_of_its_own() -> None:
    parts = SamplingParams(n=3, seed=7, top_k=4).split()
    assert [part.seed for part in parts] == [7, 8, 9]
    assert all(part.n == 1 and part.top_k == 4 for part in parts)
    assert [part.seed for part in SamplingParams(n=2).split()] == [None, None]


def test_official_generation_config_is_greedy_with_its_penalty() -> None:
    raw = {
        "max_length": 4096,
        "do_sample": False,
        "use_cache": True,
        "temperature": 0.3,
        "top_k": 5,
        "top_p": 0.85,
        "repetition_penalty": 1.03,
        "pad_token_id": 3,
        "user_token_id": 160130,
    }
    params = SamplingParams.from_generation_config(raw)
    assert params.is_greedy
    assert (params.top_k, params.top_p, params.repetition_penalty) == (5, 0.85, 1.03)
    assert (params.max_tokens, params.max_total_tokens) == (None, 4096)


def test_sampling_generation_config() -> None:
    params = SamplingParams.from_generation_config(
        {"do_sample": True, "temperature": 0.3, "max_new_tokens": 9}
    )
    assert (params.temperature, params.max_tokens) == (0.3, 9)
    assert SamplingParams.from_generation_config({"do_sample": True}).temperature == 1.0


def test_new_tokens_beat_total_length_and_overrides_beat_all() -> None:
    raw = {"max_length": 20, "max_new_tokens": 9, "repetition_penalty": 1.5}
    params = SamplingParams.from_generation_config(raw, max_tokens=3, temperature=0.5)
    assert (params.max_tokens, params.max_total_tokens, params.temperature) == (3, None, 0.5)
    assert params.repetition_penalty == 1.5


def test_unsupported_setting_is_told(caplog: pytest.LogCaptureFixture) -> None:
    SamplingParams.from_generation_config({"num_beams": 4, "no_repeat_ngram_size": 0})
    assert "num_beams = 4" in caplog.text
    assert "no_repeat_ngram_size" not in caplog.text
