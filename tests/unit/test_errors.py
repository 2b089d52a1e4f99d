"""Errors keep what they know when they cross a process boundary."""

from __future__ import annotations

import pickle

import pytest

from telechat.errors import ContextLengthError, MissingExtraError, RequestError, TelechatError


@pytest.mark.parametrize(
    "error",
    [
        TelechatError("It failed.", hint="Try again."),
        ContextLengthError(9120, 8192),
        RequestError("top_p is 2.", parameter="top_p"),
        MissingExtraError("gguf", "gguf"),
    ],
)
def test_errors_survive_pickling(error: TelechatError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
