"""What a request asks of sampling: one frozen, validated value.

Knows the fields, their ranges and how a `generation_config.json` maps onto them. Knows nothing of logits, of
tokenizers or of how the values are applied.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from telechat.errors import RequestError
from telechat.registry import nearest

log = logging.getLogger(__name__)

MAX_COMPLETIONS = 128
MAX_LOGPROBS = 100
MAX_SEED = 2**63 - 1
# Every new piece of text is compared with all beginnings of a stop string.
MAX_STOP_CHARACTERS = 1024

# Settings of a generation_config.json that would change the answer and that this engine does not have, with
# the values at which they do nothing.
_UNSUPPORTED_SETTINGS: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "penalty_alpha": (None, 0.0),
    "bad_words_ids": (None, []),
}


@dataclass(frozen=True, kw_only=True)
class StructuredOutputs:
    """What an answer must look like; exactly one field is given.

    Attributes:
        json: a JSON schema, as a mapping or as text.
        json_object: any JSON object.
        regex: a regular expression that the whole answer matches, in Rust's syntax, without look-around;
            `\\d` is 0 to 9.
        choice: the answer is one of these texts.
        grammar: a context-free grammar in llguidance's variant of Lark; the answer matches `start`.

    Raises:
        RequestError: none or several are given, or one of the wrong type.
    """

    json: Mapping[str, Any] | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.choice, list):
            object.__setattr__(self, "choice", tuple(self.choice))
        names = [field.name for field in dataclasses.fields(self)]
        given = [name for name in names if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise RequestError(
                f"structured_outputs has {' and '.join(given) or 'no field'}; it must have exactly one of "
                f"{', '.join(names)}.",
                parameter="structured_outputs",
            )
        [name] = given
        value = getattr(self, name)
        fits = {
            "json": isinstance(value, Mapping | str),
            "json_object": value is True,
            "choice": isinstance(value, tuple) and bool(value) and all(isinstance(one, str) for one in value),
        }.get(name, isinstance(value, str) and bool(value))
        if not fits:
            raise RequestError(
                f"structured_outputs.{name} is {value!r}, which is not what it takes.",
                parameter="structured_outputs",
            )


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to continue one prompt.

    Processing order: repetition penalty, presence and frequency penalties, logit bias; then, unless greedy,
    temperature, top-k, top-p, min-p.

    Attributes:
        n: completions per prompt. With a seed, completion i uses seed + i.
        temperature: divides the logits; 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens that together reach this probability; 1 keeps all.
        min_p: drop tokens less likely than this share of the most likely one; 0 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or answer; 1
            is none.
        presence_penalty: subtracted from the logits of tokens that the answer already holds.
        frequency_penalty: subtracted once per occurrence in the answer.
        logit_bias: token id -> number added to its logit.
        max_tokens: most tokens to generate; None: as many as the context holds.
        max_total_tokens: most tokens of prompt and answer together (`max_length` of a generation config);
            counts only where max_tokens is None.
        stop: strings that end the answer, of at most 1,024 characters; they are not part of its text.
        stop_token_ids: ids that end the answer, besides the model's own.
        seed: same seed and prompt, same answer, whatever else is in the batch; None draws one.
        ignore_eos: go on after the model's end token.
        skip_special_tokens: leave control tokens out of the text.
        min_tokens: no end token and no id of stop_token_ids before the answer has so many tokens. Stop
            strings end it all the same.
        logprobs: report the log-probability of each token and of this many most likely ones; None reports
            none. They are those of the model, before penalties and temperature.
        prompt_logprobs: the same for the tokens of the prompt, each given those before it.
        structured_outputs: what the answer must look like: a JSON schema, a regular expression, choices or a
            grammar.

    Raises:
        RequestError: a value of the wrong type or out of range; `parameter` names the field.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_tokens: int | None = None
    max_total_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        _check_integer("n", self.n, 1, MAX_COMPLETIONS)
        _check_number("temperature", self.temperature, low=0.0)
        _check_integer("top_k", self.top_k, 0)
        _check_number("top_p", self.top_p, low=0.0, high=1.0, low_excluded=True)
        _check_number("min_p", self.min_p, low=0.0, high=1.0)
        _check_number("repetition_penalty", self.repetition_penalty, low=0.0, low_excluded=True)
        _check_number("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        _check_number("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        for name, low, high in (
            ("max_tokens", 1, None),
            ("max_total_tokens", 1, None),
            ("seed", 0, MAX_SEED),
            ("logprobs", 0, MAX_LOGPROBS),
            ("prompt_logprobs", 0, MAX_LOGPROBS),
            ("min_tokens", 0, self.max_tokens),
        ):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), low, high)
        for name in ("ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(
                    f"{name} is {getattr(self, name)!r}; it must be true or false.", parameter=name
                )
        self._check_collections()
        self._check_structure()

    def _check_structure(self) -> None:
        if self.structured_outputs is None:
            return
        if not isinstance(self.structured_outputs, StructuredOutputs):
            raise RequestError(
                f"structured_outputs is {self.structured_outputs!r}; it must be a StructuredOutputs.",
                parameter="structured_outputs",
            )
        for name in ("ignore_eos", "min_tokens"):
            if getattr(self, name):
                raise RequestError(
                    f"{name} does not go with structured_outputs: the structure says where the answer ends.",
                    parameter=name,
                )

    def _check_collections(self) -> None:
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) for text in self.stop):
            raise RequestError(f"stop is {self.stop!r}; it must be a list of strings.", parameter="stop")
        if not all(self.stop):
            raise RequestError(
                "stop holds an empty string, which would end every answer at once.", parameter="stop"
            )
        longest = max(map(len, self.stop), default=0)
        if longest > MAX_STOP_CHARACTERS:
            raise RequestError(
                f"stop holds a string of {longest:,} characters; at most {MAX_STOP_CHARACTERS:,} are taken.",
                parameter="stop",
            )
        if not isinstance(self.stop_token_ids, tuple):
            raise RequestError(
                f"stop_token_ids is {self.stop_token_ids!r}; it must be a list of token ids.",
                parameter="stop_token_ids",
            )
        for token_id in self.stop_token_ids:
            _check_integer("stop_token_ids", token_id, 0)
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(
                f"logit_bias is {self.logit_bias!r}; it must map token ids to numbers.",
                parameter="logit_bias",
            )
        for token_id, bias in self.logit_bias.items():
            _check_integer("logit_bias", token_id, 0)
            _check_number("logit_bias", bias, low=-100.0, high=100.0)

    @property
    def is_greedy(self) -> bool:
        """Always the most likely token."""
        return self.temperature == 0

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def split(self) -> tuple[SamplingParams, ...]:
        """One value per completion: n of them, each with n = 1 and a seed of its own."""
        if self.n == 1:
            return (self,)
        seeds = [
            None if self.seed is None else (self.seed + index) % (MAX_SEED + 1) for index in range(self.n)
        ]
        return tuple(self.replace(n=1, seed=seed) for seed in seeds)

    @classmethod
    def from_generation_config(cls, raw: Mapping[str, Any], **overrides: Any) -> SamplingParams:
        """Read the contents of a `generation_config.json`; `overrides` are fields of this class and win.

        Without `do_sample: true` the result is greedy, as in transformers; top-k, top-p and min-p are kept,
        so that a request which only sets a temperature samples as the model's authors meant it to.

        Raises:
            RequestError: a value out of range.
        """
        for name, harmless in _UNSUPPORTED_SETTINGS.items():
            if raw.get(name) not in harmless:
                log.warning("generation_config.json sets %s = %r, which this engine ignores", name, raw[name])
        values: dict[str, Any] = {
            name: raw[name]
            for name in ("top_k", "top_p", "min_p", "repetition_penalty")
            if raw.get(name) is not None
        }
        if raw.get("do_sample"):
            values["temperature"] = 1.0 if raw.get("temperature") is None else raw["temperature"]
        else:
            values["temperature"] = 0.0
        if raw.get("max_new_tokens") is not None:
            values["max_tokens"] = raw["max_new_tokens"]
        elif raw.get("max_length") is not None:
            values["max_total_tokens"] = raw["max_length"]
        return cls(**{**values, **overrides})


def with_fields(params: SamplingParams, fields: Mapping[str, Any]) -> SamplingParams:
    """`params` with some fields given by name; RequestError when there is no such field."""
    known = [field.name for field in dataclasses.fields(SamplingParams)]
    for name in fields:
        if name not in known:
            guess = nearest(name, known)
            raise RequestError(
                f"There is no sampling parameter {name}.",
                parameter=name,
                hint=f"Did you mean {guess}?" if guess else f"These exist: {', '.join(known)}.",
            )
    return params.replace(**fields) if fields else params


def _check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} is {value!r}; it must be an integer.", parameter=name)
    if value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"from {low} to {high}"
        raise RequestError(f"{name} is {value}; it must be {limit}.", parameter=name)


def _check_number(
    name: str, value: Any, *, low: float, high: float | None = None, low_excluded: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{name} is {value!r}; it must be a number.", parameter=name)
    if value < low or (low_excluded and value == low) or (high is not None and value > high):
        limit = f"above {low:g}" if low_excluded else f"at least {low:g}"
        if high is not None:
            limit += f" and at most {high:g}"
        raise RequestError(f"{name} is {value}; it must be {limit}.", parameter=name)
