"""A file that was begun is gone on with only where everything that its numbers depend on is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.unit.checkpoint.adapters import random_adapter
from tests.unit.checkpoint.folders import TINY, assert_same_weights, random_model

from telechat import load_model
from telechat.checkpoint import save_model
from telechat.checkpoint.adapter_folder import write_adapter
from telechat.checkpoint.formats import writing
from telechat.checkpoint.formats.lazy import HeldTensor, LazyTensor, cut, join, mapped, transposed
from telechat.checkpoint.mindspore.lora import with_product
from telechat.cli.main import main

A, B = torch.arange(16.0).view(4, 4), torch.ones(4, 4)


def held(tensor: torch.Tensor = A) -> HeldTensor:
    return HeldTensor(tensor)


PAIRS: dict[str, tuple[Callable[[], LazyTensor], Callable[[], LazyTensor]]] = {
    "content": (held, lambda: held(B)),
    "window": (lambda: cut(held(), 0, 0, 2), lambda: cut(held(), 0, 2, 4)),
    "order": (lambda: join([held(), held(B)]), lambda: join([held(B), held()])),
    "transposed": (held, lambda: transposed(held())),
    "key": (lambda: mapped(held(), torch.neg, key="1"), lambda: mapped(held(), torch.neg, key="2")),
    "scaling": (
        lambda: with_product(held(), held(), held(), 1.0),
        lambda: with_product(held(), held(), held(), 2.0),
    ),
    "a": (
        lambda: with_product(held(), held(), held(), 1.0),
        lambda: with_product(held(), held(B), held(), 1.0),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_counts(name: str) -> None:
    first, second = PAIRS[name]
    assert first().identity == first().identity
    assert first().identity != second().identity


@pytest.mark.parametrize("change", ["scaling", "adapter"])
def test_a_merge_with_other_numbers_begins_anew(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(random_model(TINY), tmp_path / "model")
    for seed in (1, 2):
        write_adapter(random_adapter(TINY, seed=seed), tmp_path / f"adapter{seed}", TINY)

    def merge(out: str, adapter: int, scaling: str) -> int:
        words = ["--adapter", str(tmp_path / f"adapter{adapter}"), "--scaling", scaling]
        return main(["checkpoint", "merge-lora", str(tmp_path / "model"), str(tmp_path / out), *words])

    def refuse(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_finish", refuse)
        assert merge("out", 1, "1") == 1
    assert (tmp_path / "out.partial/model.safetensors").is_file()
    second = (1, "3") if change == "scaling" else (2, "1")
    assert merge("out", *second) == merge("fresh", *second) == 0
    assert_same_weights(
        load_model(tmp_path / "out", device="cpu"), load_model(tmp_path / "fresh", device="cpu")
    )
