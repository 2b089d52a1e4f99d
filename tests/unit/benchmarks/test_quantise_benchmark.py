"""The benchmark of quantisation: what it counts, when a goal is reached, and whose weights are whose."""

from __future__ import annotations

import math
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from benchmarks import quantise
from benchmarks.peers import quantisation
from benchmarks.quantise_chart import svg
from benchmarks.quantise_measure import Losses, load, losses, peer_weights, rounded, with_weights
from benchmarks.quantise_models import Document, text_rows
from safetensors.torch import load_file, save_file

from telechat.checkpoint.hub import demo_folder
from telechat.cli.main import main
from telechat.data.sequences import Encoded
from telechat.evals.comparison import CachedPredictions, Predict, log_probabilities
from telechat.quant.blocks import layers_of

PLAIN = Losses((1.0, 4.0), (0.0, 0.0), (10, 10))
WORSE = Losses((1.5, 4.1), (0.2, 0.1), (10, 10))


def test_what_is_lost() -> None:
    assert PLAIN.perplexity == pytest.approx(math.exp(0.25)) and WORSE.mean_kl == pytest.approx(0.015)
    mean, error = WORSE.less(PLAIN)
    assert mean == pytest.approx(0.03) and error == pytest.approx(math.sqrt(0.2**2 + 0.2**2) / 20)
    assert WORSE.kl_less(WORSE, 0.5)[0] == pytest.approx(WORSE.mean_kl / 2)
    entry = WORSE.entry(PLAIN)
    assert entry["lost"] == pytest.approx(WORSE.perplexity / PLAIN.perplexity - 1)
    assert PLAIN.entry(PLAIN)["lost"] == PLAIN.entry(PLAIN)["standard_error"] == 0


def test_goals() -> None:
    names = ("GPTQ int4", "GPTQ int8", "W8A8", "int8 cache", "round to nearest int4", quantise.PEER)
    found = {"float": PLAIN, **dict.fromkeys(names, WORSE)}
    verdicts = {goal.name: goal.verdict for goal in quantise.goals(found)}
    assert verdicts["perplexity, GPTQ int4, llm-compressor"] == "reached"
    assert verdicts["KL, GPTQ int4, half of rounding to nearest"] == "MISSED"
    assert verdicts["perplexity, W8A8"] == "within luck"
    assert quantise.Goal("", 0.03, 0.01, 0.005).verdict == "MISSED"
    without = {name: each for name, each in found.items() if name != quantise.PEER}
    assert not [goal for goal in quantise.goals(without) if "llm-compressor" in goal.name]


@torch.inference_mode()
def test_models_are_measured_as_stored(tmp_path: Path) -> None:
    """Against plain logits; and the peer's names lead back to our weights."""
    plain = load(demo_folder())
    row = Encoded(tuple(range(40, 60)), [True] * 20)
    coarse = rounded(demo_folder(), 4, 128)
    models: dict[str, Predict] = {
        "plain": partial(log_probabilities, plain),
        "coarse": partial(log_probabilities, coarse),
        "cache": CachedPredictions(plain, 20, "auto"),
        "int8 cache": CachedPredictions(plain, 20, "int8"),
    }
    every = losses(models, [row], "plain")
    found = every["coarse"]
    logits, wanted = (torch.log_softmax(one(torch.tensor([row.ids]))[0, :-1], -1) for one in (coarse, plain))
    assert found.nll[0] == pytest.approx(-float(logits[range(19), row.ids[1:]].sum()), rel=1e-5)
    assert found.kl[0] == pytest.approx(float((wanted.exp() * (wanted - logits)).sum()), rel=1e-3)
    assert every["plain"].mean_kl == 0 == every["plain"].less(every["plain"])[0]
    # Of fp32 the differences of log-probabilities keep some 1e-7.
    assert abs(every["cache"].mean_kl) < 1e-7 < every["int8 cache"].mean_kl < 1e-3

    llama = tmp_path / "llama"
    assert main(["export", "llama", "demo", str(llama), "--dtype", "float32"]) == 0
    file = tmp_path / "peer.safetensors"
    save_file({name: 2 * weight for name, weight in load_file(llama / "model.safetensors").items()}, file)
    weights = peer_weights(plain, file)
    assert set(weights) == set(layers_of(plain.config))
    assert all(torch.equal(weight, 2 * plain.get_parameter(name)) for name, weight in weights.items())
    changed = with_weights(plain, weights)
    assert all(torch.equal(changed.get_parameter(name), weight) for name, weight in weights.items())


def test_rows_of_texts() -> None:
    text = "\n\n".join(f"{number} " + "word " * 60 for number in range(20))
    rows = [row["text"] for row in text_rows(Document("name", text))]
    assert "\n\n".join(rows) == text and all(len(row) < 1400 for row in rows) and len(rows) > 4
    held_out = [Document(f"module {number}", "").is_held_out for number in range(500)]
    assert 30 < sum(held_out) < 70


def test_the_chart() -> None:
    entry = WORSE.entry(PLAIN)
    report = {
        "date": "2026-01-01",
        "commit": "abc",
        "machine": {"processor": "a <processor>"},
        "models": {"demo": {"formats": {"float": PLAIN.entry(PLAIN), "W8A8": entry}}},
    }
    drawn = svg(report)
    assert "a &lt;processor&gt;" in drawn and f"{entry['lost']:+.3%}" in drawn and drawn.count("<rect") == 2


def test_a_peer_that_cannot_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise subprocess.CalledProcessError(1, ["python", "-m", "pip", "install"])

    monkeypatch.setattr(quantisation, "prepare", fail)
    why = quantise._why_no_peer()
    assert why == "llm-compressor cannot be installed: python -m pip install ended with 1"


def test_the_peer_brings_no_torch() -> None:
    assert "llmcompressor" in quantisation.pins() and "torch" not in quantisation.pins()
