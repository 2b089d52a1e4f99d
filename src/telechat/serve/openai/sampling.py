"""From the fields of a request to what the engine takes; the model's defaults fill the gaps."""

from __future__ import annotations

from typing import Any

from telechat.engine.sampling_params import SamplingParams
from telechat.serve.errors import bad_field
from telechat.serve.openai.fields import ChatRequest

# Fields that mean the same here and there; None means "not given".
_SAME = (
    "n",
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "ignore_eos",
    "skip_special_tokens",
)


def to_params(
    request: ChatRequest, defaults: SamplingParams, *, max_choices: int, vocab_size: int
) -> SamplingParams:
    """Sampling parameters for `request`.

    Raises:
        ApiError: 400 for values that contradict one another or exceed this service's limits.
        RequestError: a value the engine refuses.
    """
    changes: dict[str, Any] = {
        name: getattr(request, name) for name in _SAME if getattr(request, name) is not None
    }
    if request.n is not None and request.n > max_choices:
        raise bad_field(f"n is {request.n}; this service gives at most {max_choices} answers.", "n")
    if request.top_k is not None:
        changes["top_k"] = max(request.top_k, 0)
    if request.max_answer_tokens is not None:
        changes["max_tokens"] = request.max_answer_tokens
    if request.stop is not None:
        changes["stop"] = tuple(request.stop)
    if request.stop_token_ids is not None:
        changes["stop_token_ids"] = tuple(request.stop_token_ids)
    if request.logit_bias:
        changes["logit_bias"] = _logit_bias(request.logit_bias, vocab_size)
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_field("top_logprobs needs logprobs to be true.", "top_logprobs")
    if request.logprobs:
        changes["logprobs"] = request.top_logprobs or 0
    return defaults.replace(**changes)


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
