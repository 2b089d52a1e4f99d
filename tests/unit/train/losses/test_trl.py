"""Oracle: TRL's trainers compute the recorded losses; run as a program, this file records them anew.

The trainers are given log-probabilities instead of a model.
"""

from __future__ import annotations

import json
from collections import defaultdict
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from tests.unit.train.losses.preference_cases import (
    IS_GOOD,
    RECORDED,
    SETTINGS,
    log_probabilities,
    recorded,
    value_and_gradients,
)
from torch import Tensor


def trainer(**attributes: Any) -> SimpleNamespace:
    """What a trainer's loss asks of it."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather_for_metrics=lambda value: value, gather=lambda value: value
    )
    return SimpleNamespace(
        model=torch.nn.Identity(),
        accelerator=accelerator,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **attributes,
    )


def model(log_probs: Tensor) -> Any:
    """A model whose rows have one answer token each, with these log-probabilities [rows]."""
    column = log_probs[:, None]
    outputs = SimpleNamespace(
        log_probs=column,
        entropy=torch.zeros_like(column),
        mean_logits=torch.zeros_like(column),
        is_top1=torch.zeros_like(column, dtype=torch.bool),
    )
    return lambda **_: outputs


def rows(count: int) -> dict[str, Tensor]:
    """Two tokens a row, of which the second is the answer."""
    return {
        "input_ids": torch.ones(count, 2, dtype=torch.int64),
        "attention_mask": torch.ones(count, 2, dtype=torch.int64),
        "completion_mask": torch.tensor([[0, 1]] * count),
    }


def trl_loss(loss: str, inputs: dict[str, Tensor], settings: dict[str, float]) -> Tensor:
    """TRL's mean loss []."""
    first, second, reference_first, reference_second = inputs.values()
    if loss == "dpo":
        from trl import DPOTrainer

        itself = trainer(
            ld_alpha=None,
            f_divergence_type="reverse_kl",
            loss_types=["sigmoid"],
            loss_weights=[1.0],
            use_weighting=False,
            **settings,
        )
        shown = rows(12) | {"ref_chosen_logps": reference_first, "ref_rejected_logps": reference_second}
        value: Tensor = DPOTrainer._compute_loss(itself, model(torch.cat([first, second])), shown, False)
        return value
    if loss == "kto":
        from trl import KTOTrainer

        itself = trainer(calculate_KL=True, loss_type="kto", _compute_kl_logps=lambda *_: second, **settings)
        shown = rows(6) | {
            "label": torch.tensor(IS_GOOD),
            "ref_logps": reference_first,
            "ref_KL_logps": reference_second,
        }
        value = KTOTrainer._compute_loss(itself, model(first), shown, False)
        return value
    if loss == "orpo":
        from trl.experimental.orpo import ORPOTrainer

        itself = trainer(**settings)
        logits = torch.zeros(6, 1)
        itself.concatenated_forward = lambda *_: (first, second, logits, logits, -first.mean())
        itself.odds_ratio_loss = MethodType(ORPOTrainer.odds_ratio_loss, itself)
        value, _ = ORPOTrainer.get_batch_loss_metrics(itself, None, {})
        return value
    from trl.experimental.cpo import CPOTrainer

    itself = trainer(
        alpha=0.0,
        loss_type="simpo",
        label_smoothing=0.0,
        beta=settings["beta"],
        simpo_gamma=settings["gamma"],
    )
    losses: Tensor = CPOTrainer.cpo_loss(itself, first, second)[0]
    return losses.mean()


def trl_cases() -> dict[str, list[dict[str, Any]]]:
    """What TRL computes for every case."""
    return {
        loss: [
            value_and_gradients(lambda inputs, n=loss, s=one: trl_loss(n, inputs, s), log_probabilities(loss))
            for one in settings
        ]
        for loss, settings in SETTINGS.items()
    }


@pytest.mark.oracle
def test_trl_computes_what_is_recorded() -> None:
    torch.testing.assert_close(trl_cases(), recorded(), rtol=1e-6, atol=1e-7)


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(trl_cases(), indent=1) + "\n", encoding="utf-8")
