"""From the parameters of MindIE's forms to what the engine takes.

Unset parameters have MindIE's defaults, not the model's: a client that moves here gets what it got there.
Knows neither prompts nor answers.
"""

from __future__ import annotations

import secrets

from telechat.engine.sampling_params import MAX_SEED, SamplingParams
from telechat.serve.errors import bad_field
from telechat.serve.mindie.fields import (
    DEFAULT_NEW_TOKENS,
    LAST_PRIORITY,
    ChatWebRequest,
    Parameters,
    VllmRequest,
)
from telechat.serve.mindie.settings import DEFAULT_MAX_ITER_TIMES, MindieSettings


def from_parameters(
    given: Parameters | None, settings: MindieSettings, *, stop: tuple[str, ...] = ()
) -> SamplingParams:
    """Sampling of the TGI, Triton and native forms: control tokens stay in the text.

    Args:
        stop: further stop strings.
    """
    given = given or Parameters.model_validate({})
    params = SamplingParams(
        max_tokens=_capped(given.max_new_tokens or DEFAULT_NEW_TOKENS, settings),
        repetition_penalty=given.repetition_penalty or 1.0,
        stop=(*(given.stop or ()), *stop),
        temperature=0.0,
        skip_special_tokens=False,
    )
    if not _samples(given):
        return params
    return params.replace(
        temperature=given.temperature or 1.0,
        top_k=given.top_k or 0,
        top_p=given.top_p or 1.0,
        seed=_seed(given.seed),
    )


def _samples(given: Parameters) -> bool:
    if given.do_sample is not None:
        return given.do_sample
    # Values at which nothing is drawn differently do not ask for drawing.
    return given.temperature not in (None, 1.0) or bool(given.top_k) or given.top_p not in (None, 1.0)


def from_vllm(
    given: VllmRequest, settings: MindieSettings, *, max_choices: int, stream: bool
) -> SamplingParams:
    """Sampling of the vLLM form.

    Raises:
        ApiError: 400, numbers of answers that contradict one another or exceed what this service gives.
    """
    num_wanted = given.n or 1
    num_answers = given.best_of or num_wanted
    if num_answers < num_wanted:
        raise bad_field(f"best_of is {num_answers}, which is less than n, {num_wanted}.", "best_of")
    if stream and num_answers > num_wanted:
        raise bad_field("best_of goes with whole answers only; leave out stream.", "best_of")
    if num_answers > max_choices:
        name = "best_of" if given.best_of is not None else "n"
        raise bad_field(f"{name} is {num_answers}; this service gives at most {max_choices} answers.", name)
    params = SamplingParams(
        n=num_answers,
        max_tokens=_capped(given.max_tokens or DEFAULT_MAX_ITER_TIMES, settings),
        temperature=1.0 if given.temperature is None else given.temperature,
        top_k=max(given.top_k or 0, 0),
        top_p=given.top_p or 1.0,
        repetition_penalty=given.repetition_penalty or 1.0,
        presence_penalty=given.presence_penalty or 0.0,
        frequency_penalty=given.frequency_penalty or 0.0,
        stop=tuple(given.stop or ()),
        stop_token_ids=tuple(given.stop_token_ids or ()),
        ignore_eos=given.ignore_eos or False,
        skip_special_tokens=given.skip_special_tokens is not False,
        # Which of several answers is likeliest is told by their log-probabilities.
        logprobs=0 if num_answers > num_wanted else None,
    )
    return params if params.is_greedy else params.replace(seed=_seed(given.seed))


def from_chat_web(given: ChatWebRequest, max_length: int) -> SamplingParams:
    """Sampling of the chat form; `max_length` counts prompt and answer."""
    params = SamplingParams(
        max_total_tokens=max_length,
        temperature=0.0,
        repetition_penalty=given.repetition_penalty or 1.0,
    )
    if not given.do_sample:
        return params
    return params.replace(
        temperature=given.temperature or 1.0,
        top_k=1 if given.top_k is None else given.top_k,
        top_p=given.top_p or 1.0,
    )


def _capped(num_tokens: int, settings: MindieSettings) -> int:
    return min(num_tokens, settings.max_iter_times or num_tokens)


def _seed(given: int | None) -> int:
    """The engine's seeds have 63 bits. One is drawn where none is given, so that answers can report it."""
    return secrets.randbelow(MAX_SEED) if given is None else given & MAX_SEED


def engine_priority(given: Parameters) -> int:
    """MindIE's 5, its default, is the engine's 0; its 1 goes first."""
    return (given.priority or LAST_PRIORITY) - LAST_PRIORITY
