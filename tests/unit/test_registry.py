"""Registries: lazy, exact, and honest about broken imports."""

from __future__ import annotations

import sys

import pytest

from telechat.errors import UsageError
from telechat.registry import Registry, nearest


def test_resolves_when_asked() -> None:
    registry = Registry("colour", {"red": "colorsys:rgb_to_hls", "broken": "colorsys:no_such_name"})
    sys.modules.pop("colorsys", None)
    assert registry.names() == ("red", "broken")
    assert "colorsys" not in sys.modules
    assert registry.resolve("red")(0, 0, 0) == (0.0, 0.0, 0.0)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError) as caught:
        Registry("colour", {"red": "a:b", "blue": "c:d"}).resolve("re")
    assert "'re'" in caught.value.message and "blue, red" in str(caught.value.hint)


def test_broken_import_stays_one() -> None:
    with pytest.raises(ModuleNotFoundError):
        Registry("thing", {"x": "telechat.no_such_module:y"}).resolve("x")


@pytest.mark.parametrize(("word", "guess"), [("sreve", "serve"), ("chatt", "chat"), ("zzz", None)])
def test_nearest(word: str, guess: str | None) -> None:
    assert nearest(word, ("chat", "serve", "deploy")) == guess
