"""The step loop: the same tokens whatever else is in the batch, limits, endings, cancellation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.engine.engine_samples import (
    EOS,
    FIRST_BYTE,
    GREEDY,
    TRAINING_LENGTH,
    VOCAB_SIZE,
    greedy_without_cache,
    random_prompts,
    tiny_llm,
    tiny_model,
)

from telechat.engine import LLM, SamplingParams
from telechat.engine.engine import Engine
from telechat.engine.request import Request, State
from telechat.errors import ContextLengthError, PromptError, RequestError, TokenizerError

PROMPT = [20, 30, 40]


def finish(engine: Engine, *requests: Request) -> None:
    while not all(request.is_finished for request in requests):
        engine.step()


def make_request(llm: LLM, prompt: list[int], params: SamplingParams, **settings: Any) -> Request:
    [request] = llm.intake.make_requests(prompt, params, **settings)
    return request


def run(llm: LLM, prompt: list[int], params: SamplingParams, **settings: Any) -> Request:
    engine = llm.engine
    request = make_request(llm, prompt, params, **settings)
    engine.add(request)
    finish(engine, request)
    return request


def test_batched_greedy_equals_full_recomputation() -> None:
    prompts = random_prompts(12, seed=1)
    outputs = tiny_llm(max_batch_size=5).generate(prompts, GREEDY)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.outputs[0].token_ids == greedy_without_cache(tiny_model(), prompt, 12)


@pytest.mark.parametrize("kind", ["greedy", "penalised", "sampled"])
def test_answers_do_not_depend_on_the_batch(kind: str) -> None:
    params = {
        "greedy": GREEDY,
        "penalised": GREEDY.replace(repetition_penalty=1.2, frequency_penalty=0.3),
        "sampled": SamplingParams(temperature=1.5, top_p=0.9, seed=5, max_tokens=12, ignore_eos=True),
    }[kind]
    prompts = random_prompts(24, seed=2)
    each = [params.replace(max_tokens=3 + index % 11) for index in range(len(prompts))]
    together = tiny_llm(max_batch_size=7, max_batch_tokens=100).generate(prompts, each)
    llm = tiny_llm(max_batch_size=1)
    for prompt, one, output in zip(prompts, each, together, strict=True):
        assert output.outputs[0].token_ids == llm.generate(prompt, one)[0].outputs[0].token_ids


def test_a_request_that_joins_changes_nothing_for_the_others() -> None:
    llm = tiny_llm()
    expected = run(llm, PROMPT, GREEDY).token_ids
    engine = llm.engine
    first = make_request(llm, PROMPT, GREEDY)
    engine.add(first)
    for joined in range(4):
        engine.step()
        engine.add(make_request(llm, [50 + joined] * (10 * joined + 1), GREEDY.replace(max_tokens=2)))
    finish(engine, first)
    assert first.token_ids == expected


def test_a_declared_longer_context_uses_one_table_for_all_lengths() -> None:
    """Past the training length (128) cached answers equal recomputation with the table of max_model_len."""
    length = 4 * TRAINING_LENGTH
    model = tiny_model("static", length)
    prompts = [*random_prompts(3, seed=4), *([40 + n] * n for n in (90, 120, 200))]
    outputs = tiny_llm(model, max_model_len=length, max_batch_size=4).generate(prompts, GREEDY)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.outputs[0].token_ids == greedy_without_cache(model, prompt, 12)


def test_consistent_mode_past_the_training_length() -> None:
    """Neighbours of another length, on the other side of the boundary, do not change a row's table."""
    model = tiny_model("consistent")
    prompts = [[40 + n] * n for n in (100, 110, 120, 125, 140)]
    outputs = tiny_llm(model, max_model_len=200).generate(prompts, GREEDY)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.outputs[0].token_ids == greedy_without_cache(model, prompt, 12)


def test_end_token_ends_and_is_no_text() -> None:
    bias = {EOS: 100.0}
    ended = run(tiny_llm(), PROMPT, SamplingParams(temperature=0.0, logit_bias=bias))
    assert (ended.token_ids, ended.text, ended.finish_reason, ended.stop_reason) == ([EOS], "", "stop", EOS)
    params = SamplingParams(temperature=0.0, logit_bias=bias, ignore_eos=True, max_tokens=3)
    ignored = run(tiny_llm(), PROMPT, params)
    assert (ignored.token_ids, ignored.text, ignored.finish_reason) == ([EOS] * 3, "", "length")
    shown = run(tiny_llm(), PROMPT, params.replace(skip_special_tokens=False))
    assert shown.text == f"<{EOS}>" * 3


def test_stop_token_ids() -> None:
    free = run(tiny_llm(), PROMPT, GREEDY).token_ids
    stop = free[4]
    ended = run(tiny_llm(), PROMPT, GREEDY.replace(stop_token_ids=(stop,)))
    assert ended.token_ids == free[: free.index(stop) + 1]
    assert (ended.finish_reason, ended.stop_reason) == ("stop", stop)


def test_stop_string_over_several_tokens() -> None:
    a, b = FIRST_BYTE + ord("a"), FIRST_BYTE + ord("b")
    bias = {a: 100.0, b: 99.0}
    params = SamplingParams(
        temperature=0.0, logit_bias=bias, frequency_penalty=2.0, max_tokens=9, stop=("aba",)
    )
    free = run(tiny_llm(), PROMPT, params.replace(stop=()))
    assert "aba" in free.text
    ended = run(tiny_llm(), PROMPT, params)
    assert ended.text == free.text[: free.text.index("aba")]
    assert (ended.finish_reason, ended.stop_reason) == ("stop", "aba")
    assert len(ended.token_ids) == len(ended.text) + 3


def test_length_limits() -> None:
    llm = tiny_llm(max_model_len=16)
    assert len(run(llm, PROMPT, SamplingParams(max_tokens=4, ignore_eos=True)).token_ids) == 4
    whole = run(llm, PROMPT, SamplingParams(ignore_eos=True))
    assert (len(whole.token_ids), whole.finish_reason) == (13, "length")
    assert len(run(llm, PROMPT, SamplingParams(max_tokens=50, ignore_eos=True)).token_ids) == 13
    assert len(run(llm, PROMPT, SamplingParams(max_total_tokens=8, ignore_eos=True)).token_ids) == 5
    both = SamplingParams(max_total_tokens=8, max_tokens=7, ignore_eos=True)
    assert len(run(llm, PROMPT, both).token_ids) == 7
    assert len(run(llm, [20] * 15, GREEDY).token_ids) == 1


def test_prompts_that_do_not_fit() -> None:
    llm = tiny_llm(max_model_len=16)
    engine = llm.engine
    with pytest.raises(ContextLengthError, match="17 tokens") as caught:
        make_request(llm, [20] * 17, GREEDY)
    assert (caught.value.num_tokens, caught.value.limit) == (17, 15)
    with pytest.raises(ContextLengthError, match="max_length"):
        make_request(llm, [20] * 9, SamplingParams(max_total_tokens=8))
    with pytest.raises(PromptError, match="empty"):
        make_request(llm, [], GREEDY)
    assert not engine.has_work


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, 1.5, True])
def test_ids_outside_the_vocabulary(token_id: Any) -> None:
    llm = tiny_llm()
    with pytest.raises(PromptError, match=f"ids 0 to {VOCAB_SIZE - 1}"):
        make_request(llm, [20, token_id], GREEDY)


def test_parameters_that_do_not_fit_the_model() -> None:
    llm = tiny_llm()
    for name, params in (
        ("stop_token_ids", GREEDY.replace(stop_token_ids=(VOCAB_SIZE,))),
        ("logit_bias", GREEDY.replace(logit_bias={VOCAB_SIZE: 1.0})),
    ):
        with pytest.raises(RequestError, match=name) as caught:
            make_request(llm, PROMPT, params)
        assert caught.value.parameter == name
    with pytest.raises(RequestError, match="return_logits"):
        make_request(llm, PROMPT, GREEDY, keep_logits=0)


def test_cancelling_frees_the_place_for_the_next_step() -> None:
    llm = tiny_llm(max_batch_size=2)
    engine = llm.engine
    requests = [make_request(llm, [30 + n], GREEDY.replace(max_tokens=50)) for n in range(3)]
    for request in requests:
        engine.add(request)
    engine.step()
    assert requests[2].state is State.WAITING
    engine.cancel(requests[0])
    assert requests[0].finish_reason == "cancelled"
    stepped = engine.step()
    assert requests[2] in stepped
    assert requests[0] not in stepped
    assert len(requests[0].token_ids) == 1
    engine.cancel(requests[0])  # again: nothing happens
    finish(engine, *requests)
    assert requests[1].token_ids == run(tiny_llm(), [31], GREEDY.replace(max_tokens=50)).token_ids


def test_a_waiting_request_can_be_cancelled() -> None:
    llm = tiny_llm(max_batch_size=1)
    engine = llm.engine
    first, second = (make_request(llm, [30 + n], GREEDY) for n in range(2))
    engine.add(first)
    engine.add(second)
    engine.step()
    engine.cancel(second)
    finish(engine, first)
    assert (second.token_ids, second.text, second.finish_reason) == ([], "", "cancelled")
    assert not engine.has_work


def test_kept_logits_are_the_models() -> None:
    model = tiny_model()
    request = run(tiny_llm(), PROMPT, GREEDY.replace(max_tokens=3), keep_logits="all", keep_scores=2)
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT + request.token_ids[:-1]]))[0, len(PROMPT) - 1 :]
    assert len(request.kept_logits) == 3
    torch.testing.assert_close(torch.stack(request.kept_logits), expected, atol=1e-4, rtol=1e-4)  # type: ignore[arg-type]
    assert [next(iter(scores)) for scores in request.kept_scores] == request.token_ids


def test_an_undecodable_token_fails_its_own_request_only() -> None:
    llm = tiny_llm()
    engine = llm.engine
    bad, good = (make_request(llm, [30 + n], GREEDY) for n in range(2))

    class Refusing:
        def push(self, token_id: int) -> str:
            raise TokenizerError(f"no such id {token_id}")

        def finish(self) -> str:
            return ""

    bad.text_stream._decoder = Refusing()
    for request in (bad, good):
        engine.add(request)
    finish(engine, bad, good)
    assert isinstance(bad.error, TokenizerError)
    assert good.error is None
    assert good.token_ids == run(tiny_llm(), [31], GREEDY).token_ids


def test_deltas_join_to_the_answer() -> None:
    llm = tiny_llm()
    engine = llm.engine
    request = make_request(llm, PROMPT, GREEDY.replace(max_tokens=40, logprobs=0))
    engine.add(request)
    deltas = []
    while not request.is_finished:
        engine.step()
        delta = request.take_delta()
        if delta is not None:
            deltas.append(delta)
    assert "".join(delta.text for delta in deltas) == request.text
    assert [token_id for delta in deltas for token_id in delta.token_ids] == request.token_ids
    logprobs = [logprob for delta in deltas for logprob in delta.logprobs or []]
    assert logprobs == request.logprobs
    assert [logprob.token_id for logprob in logprobs] == request.token_ids
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == "length"
