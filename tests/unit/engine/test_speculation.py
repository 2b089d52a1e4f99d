"""Guessed tokens change how fast an answer comes, and nothing of the answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from tests.unit.engine.engine_samples import (
    EOS,
    VOCAB_SIZE,
    ByteTokenizer,
    random_prompts,
    tiny_llm,
    tiny_model,
)

from telechat.engine import LLM, SamplingParams, StructuredOutputs
from telechat.engine.engine import Engine
from telechat.engine.request import Request
from telechat.engine.runner import Runner
from telechat.engine.sampler import Sampler
from telechat.engine.speculation import PromptLookup
from telechat.engine.text import TextStream
from telechat.engine.work import Work
from telechat.errors import ConfigError
from telechat.models import TeleChatModel, build_model, initialise


def request(prompt: Sequence[int], answer: Sequence[int] = (), **fields: Any) -> Request:
    fields = {"params": SamplingParams(), "max_new_tokens": 50, **fields}
    return Request(
        prompt_token_ids=list(prompt),
        stop_token_ids=frozenset(),
        text_stream=TextStream(ByteTokenizer().stream_decoder()),
        token_ids=list(answer),
        **fields,
    )


def other_model(**changes: Any) -> TeleChatModel:
    """As `tiny_model`, but with one layer and other weights: its guesses are mostly wrong."""
    config = tiny_model().config.replace(num_layers=1, **changes)
    model = build_model(config, rope_mode="static", static_length=tiny_model().static_length)
    initialise(model, seed=5)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], [4, 5, 1, 2]),
        ([7, 2, 3, 9, 1, 2, 3, 4, 7, 2, 3], [9, 1, 2, 3]),  # the longer run wins over the later place
        ([8, 2, 3, 9, 5, 2, 3, 6, 4, 2, 3], [6, 4, 2, 3]),  # of equal runs the last place
        ([1, 2, 3, 4], []),
        ([1, 2, 2, 2], [2, 2, 2, 2]),  # what reaches the end repeats
        ([5], []),
        ([3, 4, 5, 3, 4], [5, 3, 4, 5]),
    ],
)
def test_prompt_lookup(text: list[int], expected: list[int]) -> None:
    for cut in range(1, len(text) + 1):  # wherever the answer begins
        one = request(text[:cut], text[cut:])
        PromptLookup(4).propose([one])
        assert one.draft_token_ids == expected


def test_prompt_lookup_of_a_growing_answer_is_that_of_a_fresh_one() -> None:
    draw = random.Random(0)
    grown = request([draw.randrange(4) for _ in range(10)], max_new_tokens=1000)
    proposer = PromptLookup(3)
    num_guessed = 0
    for _ in range(200):
        proposer.propose([grown])
        fresh = request(grown.prompt_token_ids, grown.token_ids, max_new_tokens=1000)
        PromptLookup(3).propose([fresh])
        assert grown.draft_token_ids == fresh.draft_token_ids
        num_guessed += len(grown.draft_token_ids)
        grown.token_ids += [draw.randrange(4) for _ in range(draw.randrange(1, 5))]
    assert num_guessed > 300


def test_no_more_guesses_than_can_be_used() -> None:
    text = [1, 2, 3, 1, 2]
    for answered, most in ((49, 0), (48, 1), (47, 2), (10, 4)):
        one = request(text, [9] * (answered - 2) + [1, 2])
        PromptLookup(4).propose([one])
        assert len(one.draft_token_ids) == most


def test_guesses_follow_the_grammar() -> None:
    make = tiny_llm().intake.make_requests
    asked = StructuredOutputs(regex="(abc)+d")
    [one] = make(ByteTokenizer().encode("abcabx"), SamplingParams(structured_outputs=asked))
    one.token_ids += ByteTokenizer().encode("abc")
    PromptLookup(4).propose([one])
    assert one.draft_token_ids == ByteTokenizer().encode("ab")  # then x, which it does not allow


SETTINGS: dict[str, dict[str, Any]] = {
    "prompt-lookup": {"speculate": "prompt-lookup"},
    "itself": {"speculate": tiny_model},
    "other model": {"speculate": other_model},
    "one guess": {"speculate": tiny_model, "num_draft_tokens": 1},
    "many guesses, few tokens a step": {
        "speculate": tiny_model,
        "num_draft_tokens": 7,
        "max_batch_tokens": 9,
    },
    "lost blocks": {"speculate": tiny_model, "num_blocks": 13, "max_batch_size": 8},
    "no shared beginnings": {"speculate": tiny_model, "prefix_caching": False},
}
KINDS = [
    SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True),
    SamplingParams(seed=1, max_tokens=20, temperature=0.7, top_p=0.9),
    SamplingParams(seed=2, max_tokens=13, repetition_penalty=1.3, frequency_penalty=0.5),
    SamplingParams(temperature=0.0, max_tokens=1),
    SamplingParams(seed=4, max_tokens=30, top_k=3, n=2, logprobs=1),
    SamplingParams(seed=5, max_tokens=30, structured_outputs=StructuredOutputs(regex="[a-d]{2,6}(xyz)+")),
    SamplingParams(temperature=0.0, max_tokens=20, min_tokens=5, logit_bias={EOS: 8.0}),
    SamplingParams(seed=7, max_tokens=25, stop=("a", "\x10"), temperature=2.0),
]


def answers(llm: LLM) -> list[Any]:
    head = random_prompts(1, seed=9, longest=40)[0] * 2
    prompts = [
        head + prompt if number % 2 else prompt for number, prompt in enumerate(random_prompts(16, seed=3))
    ]
    asked = [KINDS[number % len(KINDS)] for number in range(len(prompts))]
    return [
        [(one.token_ids, one.text, one.finish_reason, _rounded(one.logprobs)) for one in output.outputs]
        for output in llm.generate(prompts, asked)
    ]


@cache
def answers_without_guesses() -> list[Any]:
    return answers(tiny_llm(max_model_len=128, deterministic=True))


def _rounded(logprobs: Any) -> Any:
    return logprobs and [(one.token_id, round(one.logprob, 3)) for one in logprobs]


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_are_those_without_guesses(name: str) -> None:
    settings = dict(SETTINGS[name])
    if callable(settings["speculate"]):
        settings["speculate"] = settings["speculate"]()
    llm = tiny_llm(max_model_len=128, deterministic=True, **settings)
    assert answers(llm) == answers_without_guesses()
    stats = llm.stats()
    assert stats.num_free_blocks == stats.num_blocks
    assert stats.num_draft_tokens > 0
    if settings["speculate"] is tiny_model():
        # Its keys are in step with the large model's: every guess that counts is right.
        assert stats.num_accepted_drafts > 0.7 * stats.num_draft_tokens
        assert stats.num_steps < 0.75 * stats.num_generated_tokens
    if name == "lost blocks":
        assert stats.num_preemptions > 0


@pytest.mark.parametrize("rope_mode", ["official", "consistent", "static"])
def test_past_the_training_length(rope_mode: Any) -> None:
    """128 is the training length; prompts and answers cross it."""
    prompts = random_prompts(3, seed=6, longest=60)
    prompts = [(prompt * 10)[: 120 + 3 * number] for number, prompt in enumerate(prompts)]
    length = 200 if rope_mode == "static" else None
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)

    def run(**settings: Any) -> list[list[int]]:
        model = tiny_model(rope_mode, length)
        llm = tiny_llm(model, max_model_len=200, **settings)
        return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]

    expected = run()
    assert run(speculate="prompt-lookup") == expected
    assert run(speculate=tiny_model(rope_mode, length)) == expected


def test_sampling_with_guesses_preserves_the_distribution() -> None:
    """Chi-square of the first two tokens of 6: 35 degrees of freedom, 66.6 once in a thousand times."""
    num_requests, vocab_size = 6000, 6
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(vocab_size, generator=generator)
    second = torch.randn(vocab_size, vocab_size, generator=generator)  # given the first token
    guesses = torch.distributions.Categorical(logits=torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    requests = [request([0], params=SamplingParams(seed=seed)) for seed in range(num_requests)]
    drafts = [int(draft) for draft in guesses.sample((num_requests,))]
    for one, draft in zip(requests, drafts, strict=True):
        one.draft_token_ids = [draft]
    rows = torch.stack([row for draft in drafts for row in (first, second[draft])])
    num_right = 0
    for one, sampled in zip(requests, Sampler(requests, device=rows.device).sample(rows), strict=True):
        one.token_ids, one.draft_token_ids = list(sampled.token_ids), []
        num_right += len(sampled.token_ids) == 2
    assert num_requests * 0.1 < num_right < num_requests * 0.9
    late = [one for one in requests if len(one.token_ids) == 1]
    rows = second[torch.tensor([one.token_ids[0] for one in late])]
    for one, sampled in zip(late, Sampler(late, device=rows.device).sample(rows), strict=True):
        one.token_ids += sampled.token_ids
    counts = torch.zeros(vocab_size, vocab_size, dtype=torch.float64)
    for one in requests:
        counts[one.token_ids[0], one.token_ids[1]] += 1
    expected = num_requests * first.double().softmax(0)[:, None] * second.double().softmax(1)
    assert float(((counts - expected) ** 2 / expected).sum()) < 66.6


def test_a_guessing_model_must_know_the_same_tokens() -> None:
    with pytest.raises(ConfigError, match=f"271 tokens.*{VOCAB_SIZE}"):
        tiny_llm(speculate=other_model(vocab_size=271))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_draft_tokens": 3}, "speculate"),
        ({"speculate": "prompt-lookup", "num_draft_tokens": 0}, "1 to 16"),
        ({"speculate": "prompt-lookup", "num_draft_tokens": 17}, "1 to 16"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        tiny_llm(**settings)


def test_the_guessing_model_counts_in_the_plan_of_the_cache() -> None:
    plain, guessing = tiny_llm(), tiny_llm(speculate=other_model())
    assert guessing.cache_plan.bytes_per_block == plain.cache_plan.bytes_per_block * 3 // 2


def test_a_step_that_fails_leaves_no_guesses_behind() -> None:
    """The next answers are right all the same."""
    llm = tiny_llm(speculate=tiny_model(), deterministic=True)
    prompts = random_prompts(3, seed=1)
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, KINDS[0])]
    runner: Runner = llm.engine.runner
    whole = runner.logits

    def failing(works: Sequence[Work]) -> torch.Tensor:
        runner.logits = whole  # type: ignore[method-assign]
        raise RuntimeError("broken")

    engine: Engine = llm.engine
    requests = [llm.intake.make_requests(prompt, KINDS[0])[0] for prompt in prompts]
    for one in requests:
        engine.add(one)
    engine.step()
    engine.step()
    runner.logits = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="broken"):
        engine.step()
    engine.fail_running(RuntimeError("broken"))
    assert [output.outputs[0].token_ids for output in llm.generate(prompts, KINDS[0])] == expected


def test_a_stream_that_another_call_has_finished() -> None:
    """Its next step finds nothing to do, and the guessing model nothing to follow."""
    llm = tiny_llm(speculate=other_model())
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    messages = [{"role": "user", "content": "hi"}]
    stream = llm.chat(messages, params, stream=True)
    first = next(stream)
    llm.generate([30, 31], params.replace(max_tokens=40))
    token_ids = [*first.token_ids, *(token_id for delta in stream for token_id in delta.token_ids)]
    assert token_ids == llm.chat(messages, params).outputs[0].token_ids
