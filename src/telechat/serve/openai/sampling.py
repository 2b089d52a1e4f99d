"""From the fields of a request to what the engine takes; the model's defaults fill the gaps."""

from __future__ import annotations

from typing import Any

from telechat.engine.sampling_params import SamplingParams
from telechat.serve.errors import bad_field
from telechat.serve.openai.fields import SamplingFields

# Fields that mean the same here and there; None means "not given".
_SAME = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "min_tokens",
    "ignore_eos",
    "skip_special_tokens",
)


def sampling_changes(body: SamplingFields, vocab_size: int) -> dict[str, Any]:
    """The fields of `SamplingParams` that the request gives, to be put over the model's defaults.

    Raises:
        ApiError: 400 for a key of logit_bias that is no token id.
    """
    changes: dict[str, Any] = {name: getattr(body, name) for name in _SAME if getattr(body, name) is not None}
    if body.top_k is not None:
        changes["top_k"] = max(body.top_k, 0)
    if body.stop is not None:
        changes["stop"] = tuple(body.stop)
    if body.stop_token_ids is not None:
        changes["stop_token_ids"] = tuple(body.stop_token_ids)
    if body.logit_bias:
        changes["logit_bias"] = _logit_bias(body.logit_bias, vocab_size)
    return changes


def check_choices(n: int | None, limit: int) -> int:
    """The number of answers to one prompt.

    Raises:
        ApiError: 400, more than the service gives.
    """
    if n is not None and n > limit:
        raise bad_field(f"n is {n}; this service gives at most {limit} answers.", "n")
    return n or 1


def _logit_bias(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    """JSON keys are texts; these must be token ids."""
    bias: dict[int, float] = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 9 and int(key) < vocab_size):
            raise bad_field(
                f"logit_bias has the key {key[:50]!r}; keys are token ids below {vocab_size}.", "logit_bias"
            )
        bias[int(key)] = value
    return bias


def describe(params: SamplingParams) -> dict[str, Any]:
    """The values in use when a request leaves them out, for the model list."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty")
    shown: dict[str, Any] = {
        name: getattr(params, name) for name in (*names, "frequency_penalty", "max_tokens")
    }
    if params.max_tokens is None and params.max_total_tokens is not None:
        shown["max_total_tokens"] = params.max_total_tokens
    return shown
