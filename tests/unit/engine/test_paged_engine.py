"""The paged engine: shared beginnings, lost blocks, long texts, vectors, failures and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.engine.engine_samples import (
    GREEDY,
    TRAINING_LENGTH,
    VOCAB_SIZE,
    greedy_without_cache,
    random_prompts,
    tiny_llm,
    tiny_model,
)

from telechat.engine import LLM, SamplingParams
from telechat.engine.request import Request
from telechat.engine.sampling_params import StructuredOutputs
from telechat.errors import ConfigError, ContextLengthError, PromptError, RequestError
from telechat.models import RopeMode


def add(llm: LLM, prompt: list[int], params: SamplingParams = GREEDY, **settings: Any) -> Request:
    [request] = llm.intake.make_requests(prompt, params, **settings)
    llm.engine.add(request)
    return request


def finish(llm: LLM) -> None:
    while llm.engine.has_work:
        llm.engine.step()
    stats = llm.stats()
    assert stats.num_free_blocks == stats.num_blocks
    assert (stats.num_running, stats.num_waiting) == (0, 0)


def test_a_shared_system_prompt_is_computed_once() -> None:
    model = tiny_model("static", 2200)
    [system] = random_prompts(1, seed=7, longest=1)
    system = (system * 7 + list(range(8, 208))) * 10
    system = system[:2000]
    llm = tiny_llm(model, max_model_len=2200, num_blocks=400)
    questions = random_prompts(6, seed=8, longest=12)
    first = llm.generate([[*system, *questions[0]]], GREEDY)[0]
    computed = llm.stats().num_computed_tokens
    assert computed == 2000 + len(questions[0]) + 11
    outputs = llm.generate([[*system, *question] for question in questions], GREEDY)
    stats = llm.stats()
    # Each computes its own tokens and at most a block more, and the first is there already.
    assert stats.num_computed_tokens - computed <= 6 * (12 + 16 + 11)
    assert [output.num_cached_tokens for output in outputs] == [2000] * 6
    assert outputs[0].outputs == first.outputs
    fresh = tiny_llm(model, max_model_len=2200, num_blocks=400, prefix_caching=False)
    for question, output in zip(questions[:2], outputs, strict=False):
        alone = fresh.generate([[*system, *question]], GREEDY)[0]
        assert alone.outputs == output.outputs
        assert alone.num_cached_tokens == 0


@pytest.mark.parametrize("kv_cache_dtype", ["int8", "int4"])
def test_caches_of_integers_are_shared(kv_cache_dtype: str) -> None:
    """What is found in the cache is what would be computed: integers are made of each token alone."""
    prompts = [[*range(20, 60), 100 + n] for n in range(4)]
    llm = tiny_llm(kv_cache_dtype=kv_cache_dtype, deterministic=True)
    first, again = (llm.generate(prompts, GREEDY) for _ in range(2))
    assert all(output.num_cached_tokens >= 32 for output in again)
    fresh = tiny_llm(kv_cache_dtype=kv_cache_dtype, deterministic=True, prefix_caching=False)
    for prompt, *outputs in zip(prompts, first, again, strict=True):
        alone = fresh.generate([prompt], GREEDY)[0]
        assert [output.outputs for output in outputs] == [alone.outputs] * 2


def test_a_flood_of_equal_beginnings_shares_them_while_they_are_being_computed() -> None:
    llm = tiny_llm(max_batch_tokens=40)
    head = list(range(20, 100))
    outputs = llm.generate([[*head, 100 + n] for n in range(8)], GREEDY.replace(max_tokens=1))
    assert llm.stats().num_computed_tokens == 81 + 7
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) > 1


def test_the_next_turn_finds_the_conversation_so_far() -> None:
    llm = tiny_llm()
    messages = [{"role": "user", "content": "a longer question than one block holds"}]
    first = llm.chat(messages, GREEDY.replace(max_tokens=20))
    prompt = [*first.prompt_token_ids, *first.outputs[0].token_ids, 30, 31]
    second = llm.generate(prompt, GREEDY)[0]
    assert second.num_cached_tokens == (len(prompt) - 3) // 16 * 16
    assert second.outputs == tiny_llm(prefix_caching=False).generate(prompt, GREEDY)[0].outputs


@pytest.mark.parametrize("rope_mode", ["official", "consistent", "static"])
@pytest.mark.parametrize("max_batch_tokens", [512, 48])
def test_lost_blocks_change_no_answer_past_the_training_length(
    rope_mode: RopeMode, max_batch_tokens: int
) -> None:
    model = tiny_model(rope_mode, 256 if rope_mode == "static" else None)
    prompts = [[40 + n] * n for n in (100, 120, 126, 140)]
    params = GREEDY.replace(max_tokens=24)
    expected = tiny_llm(model, max_model_len=256, max_batch_size=1, prefix_caching=False).generate(
        prompts, params
    )
    llm = tiny_llm(model, max_model_len=256, max_batch_tokens=max_batch_tokens)
    requests = [add(llm, prompt, params) for prompt in prompts]
    step = 0
    while llm.engine.has_work:
        llm.engine.step()
        step += 1
        running = llm.engine.scheduler.running
        if step % 3 == 0 and running and step < 300:
            llm.engine.scheduler.preempt(running[step % len(running)])
    assert llm.stats().num_preemptions > 5
    assert [request.token_ids for request in requests] == [output.outputs[0].token_ids for output in expected]
    if rope_mode != "official":
        for prompt, request in zip(prompts, requests, strict=True):
            assert request.token_ids == greedy_without_cache(model, prompt, 24)


def test_keys_of_another_rotary_table_are_not_shared() -> None:
    """The same beginning within and past the training length; each finds its own blocks only."""
    model = tiny_model("official")
    head = list(range(8, 8 + TRAINING_LENGTH - 8))
    short, long = [*head, 9], [*head, *range(9, 39)]
    llm = tiny_llm(model, max_model_len=256)
    outputs = [llm.generate(prompt, GREEDY)[0] for prompt in (short, long, short, long)]
    assert [output.num_cached_tokens for output in outputs] == [0, 0, 112, 144]
    for output, prompt in zip(outputs, (short, long, short, long), strict=True):
        fresh = tiny_llm(model, max_model_len=256, prefix_caching=False)
        assert output.outputs == fresh.generate(prompt, GREEDY)[0].outputs


def test_requests_with_different_salts_share_nothing() -> None:
    llm = tiny_llm()
    prompt = list(range(20, 60))
    for salt, cached in (("a", 0), ("b", 0), ("a", 32), ("", 0)):
        request = add(llm, prompt, cache_salt=salt)
        finish(llm)
        assert request.num_cached_tokens == cached


def test_prompt_logprobs_are_the_models() -> None:
    model = tiny_model()
    [prompt] = random_prompts(1, seed=5, longest=100)
    prompt = (prompt * 100)[:100]
    llm = tiny_llm(max_batch_tokens=32)
    llm.generate(prompt, GREEDY)  # what is in the cache already does not shorten the report
    output = llm.generate(prompt, GREEDY, prompt_logprobs=2)[0]
    with torch.inference_mode():
        expected = torch.log_softmax(model(torch.tensor([prompt]))[0], dim=-1)
    assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == len(prompt)
    assert output.prompt_logprobs[0] is None
    for position, logprob in enumerate(output.prompt_logprobs[1:]):
        assert logprob is not None and logprob.token_id == prompt[position + 1]
        assert logprob.logprob == pytest.approx(float(expected[position, logprob.token_id]), abs=1e-4)
        assert [token_id for token_id, _ in logprob.top] == expected[position].topk(2).indices.tolist()
    assert output.outputs[0].token_ids == llm.generate(prompt, GREEDY)[0].outputs[0].token_ids
    assert llm.generate([5], GREEDY, prompt_logprobs=0)[0].prompt_logprobs == [None]


def test_prompt_logprobs_are_whole_after_losing_blocks() -> None:
    llm = tiny_llm(max_batch_tokens=16)
    prompt = list(range(20, 90))
    expected = llm.generate(prompt, GREEDY, prompt_logprobs=0)[0].prompt_logprobs
    request = add(llm, prompt, GREEDY.replace(prompt_logprobs=0))
    for _ in range(3):
        llm.engine.step()
    llm.engine.scheduler.preempt(request)
    finish(llm)
    assert request.prompt_logprobs == expected


@pytest.mark.parametrize("max_batch_tokens", [512, 24])
def test_vectors_are_the_models_final_hidden_states(max_batch_tokens: int) -> None:
    model = tiny_model()
    prompts = random_prompts(5, seed=6)
    llm = tiny_llm(max_batch_tokens=max_batch_tokens)
    means, lasts = llm.embed(prompts), llm.embed(prompts, pooling="last")
    for prompt, mean, last in zip(prompts, means, lasts, strict=True):
        with torch.inference_mode():
            hidden = model.hidden_states(torch.tensor([prompt]))[0]
        torch.testing.assert_close(mean.embedding, hidden.mean(0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(last.embedding, hidden[-1], atol=1e-4, rtol=1e-4)
        assert mean.prompt_token_ids == prompt
    [unit] = llm.embed("some text", normalize=True)
    assert float(unit.embedding.norm()) == pytest.approx(1, abs=1e-5)
    assert len(llm.embed([[20] * TRAINING_LENGTH])) == 1  # no room is needed for an answer
    finish(llm)


def test_vectors_beside_answers() -> None:
    llm = tiny_llm()
    stream = llm.chat([{"role": "user", "content": "hi"}], GREEDY, stream=True)
    first = next(stream)
    [vector] = llm.embed("hello")
    torch.testing.assert_close(vector.embedding, tiny_llm().embed("hello")[0].embedding)
    rest = "".join(delta.text for delta in stream)
    assert first.text + rest == tiny_llm().chat([{"role": "user", "content": "hi"}], GREEDY).text


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("answers_first", [False, True])
def test_an_answer_and_a_vector_of_one_prompt_in_one_step(
    *, deterministic: bool, answers_first: bool
) -> None:
    """Neither may read keys of the other's blocks that the step has yet to compute."""
    [prompt] = random_prompts(1, seed=11, longest=1)
    prompt = [*prompt, *range(20, 90)]
    alone = tiny_llm(deterministic=deterministic)
    [expected] = alone.generate([prompt], GREEDY)
    [vector] = alone.embed([prompt], pooling="last")
    llm = tiny_llm(deterministic=deterministic)
    embedded = llm.intake.make_embedding(prompt, "last")
    if answers_first:
        request = add(llm, prompt)
        llm.engine.add(embedded)
    else:
        llm.engine.add(embedded)
        request = add(llm, prompt)
    also_embedded = llm.intake.make_embedding(prompt, "last")
    llm.engine.add(also_embedded)
    llm.engine.step()
    assert llm.engine.num_steps == 1 and len(request.token_ids) == 1
    finish(llm)
    assert request.token_ids == expected.outputs[0].token_ids
    for one in (embedded, also_embedded):
        assert one.pooled is not None
        torch.testing.assert_close(one.pooled, vector.embedding, atol=1e-4, rtol=1e-4)
    # What any of them has left in the cache is right as well.
    [again] = llm.generate([prompt], GREEDY)
    assert again.num_cached_tokens > 0 and again.outputs == expected.outputs


def test_prompts_that_have_no_vector() -> None:
    llm = tiny_llm()
    with pytest.raises(PromptError, match="empty"):
        llm.embed(["fine", ""])
    with pytest.raises(ContextLengthError, match="129 tokens"):
        llm.embed([[20] * (TRAINING_LENGTH + 1)])
    with pytest.raises(PromptError, match="ids 0 to"):
        llm.embed([[VOCAB_SIZE]])
    with pytest.raises(RequestError, match="pooling is 'max'; it must be mean or last"):
        llm.embed("x", pooling="max")  # type: ignore[arg-type]
    assert not llm.engine.has_work


def test_logits_that_are_no_numbers_end_their_own_request_only() -> None:
    llm = tiny_llm()
    expected = tiny_llm().generate([[31], [32]], GREEDY)
    requests = [add(llm, [30 + n]) for n in range(3)]
    llm.engine.step()
    logits = llm.engine.runner.logits

    def broken(works: Any) -> torch.Tensor:
        found = logits(works).clone()
        found[0] = torch.nan
        return found

    llm.engine.runner.logits = broken  # type: ignore[method-assign]
    llm.engine.step()
    llm.engine.runner.logits = logits  # type: ignore[method-assign]
    finish(llm)
    assert isinstance(requests[0].error, RequestError) and "NaN" in str(requests[0].error)
    assert [request.token_ids for request in requests[1:]] == [
        output.outputs[0].token_ids for output in expected
    ]


def test_a_step_that_fails_leaves_nothing_wrong_behind() -> None:
    llm = tiny_llm()
    prompt = list(range(20, 80))
    logits = llm.engine.runner.logits

    def failing(works: Any) -> torch.Tensor:
        raise RuntimeError("out of memory")

    llm.engine.runner.logits = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        llm.generate(prompt, GREEDY)
    finish(llm)
    llm.engine.runner.logits = logits  # type: ignore[method-assign]
    # The blocks of that prompt were never filled, so they must not be found.
    output = llm.generate(prompt, GREEDY)[0]
    assert output.num_cached_tokens == 0
    assert output.outputs[0].token_ids == greedy_without_cache(tiny_model(), prompt, 12)


@pytest.mark.parametrize(
    ("prompt", "fields", "error"),
    [
        ([], {}, PromptError),
        ([20] * TRAINING_LENGTH, {}, ContextLengthError),
        ([20, VOCAB_SIZE], {}, PromptError),
        ([20, -1], {}, PromptError),
        ([20], {"max_tokens": 0}, RequestError),
        ([20], {"max_tokens": -5}, RequestError),
        ([20], {"max_total_tokens": -1}, RequestError),
        ([20], {"n": 0}, RequestError),
        ([20], {"top_k": -1}, RequestError),
        ([20], {"stop": ("",)}, RequestError),
        ([20], {"stop_token_ids": (VOCAB_SIZE,)}, RequestError),
        ([20], {"stop_token_ids": (-1,)}, RequestError),
        ([20], {"logit_bias": {VOCAB_SIZE: 1.0}}, RequestError),
        ([20], {"structured_outputs": StructuredOutputs(regex="(")}, RequestError),
        ([20], {"structured_outputs": StructuredOutputs(grammar="start: missing")}, RequestError),
    ],
)
def test_bad_input_is_an_error_of_that_request_alone(
    prompt: list[int], fields: dict[str, Any], error: type[Exception]
) -> None:
    if "structured_outputs" in fields:
        pytest.importorskip("llguidance")
    llm = tiny_llm()
    expected = tiny_llm().generate([[30, 31]], GREEDY)[0].outputs[0].token_ids
    good = add(llm, [30, 31])
    llm.engine.step()
    with pytest.raises(error):
        add(llm, prompt, GREEDY.replace(**fields))
    finish(llm)
    assert good.token_ids == expected


def test_one_parameter_by_its_name() -> None:
    llm = tiny_llm()
    greedy = llm.chat([{"role": "user", "content": "hi"}], GREEDY)
    warm = SamplingParams(max_tokens=12, ignore_eos=True)
    assert llm.chat([{"role": "user", "content": "hi"}], warm, temperature=0).outputs == greedy.outputs
    assert len(llm.generate(["a", "b"], GREEDY, max_tokens=3)[1].outputs[0].token_ids) == 3
    with pytest.raises(RequestError, match=r"no sampling parameter temprature\. Did you mean temperature"):
        llm.chat([{"role": "user", "content": "hi"}], temprature=0)
    with pytest.raises(RequestError, match="temperature is -1"):
        llm.generate("a", temperature=-1)


def test_stats_tell_where_the_engine_stands() -> None:
    llm = tiny_llm(num_blocks=16, block_size=16, max_batch_size=2)
    requests = [add(llm, [20 + n] * 20) for n in range(3)]
    llm.engine.step()
    stats = llm.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_steps) == (2, 1, 1)
    assert (stats.num_blocks, stats.num_free_blocks, stats.block_size) == (16, 12, 16)
    assert (stats.num_computed_tokens, stats.num_generated_tokens) == (40, 2)
    finish(llm)
    stats = llm.stats()
    assert stats.num_generated_tokens == sum(len(request.token_ids) for request in requests) == 36
    assert (stats.num_cached_blocks, stats.num_preemptions, stats.num_prefix_hit_tokens) == (3, 0, 0)


def test_a_cache_that_cannot_hold_one_request_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_blocks is 7; max_model_len 128 needs 8 blocks of 16 tokens"):
        tiny_llm(num_blocks=7, block_size=16)
    with pytest.raises(ConfigError, match="both say how large"):
        tiny_llm(num_blocks=8, memory_limit=1 << 40)
    with pytest.raises(ConfigError, match="num_blocks and cache_memory both"):
        tiny_llm(num_blocks=8, cache_memory=1 << 30)
    bytes_per_block = tiny_llm(block_size=16).cache_plan.bytes_per_block
    assert tiny_llm(block_size=16, cache_memory=9 * bytes_per_block + 1).cache_plan.num_blocks == 9
    with pytest.raises(ConfigError, match="memory_limit is 0; it must be at least 1"):
        tiny_llm(memory_limit=0)
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'int3'; it must be auto, int8 or int4"):
        tiny_llm(kv_cache_dtype="int3")


@pytest.mark.parametrize("block_size", [16, 32, 64, 96, 128])
def test_every_block_size_gives_the_same_answers(block_size: int) -> None:
    prompts = random_prompts(6, seed=12)
    outputs = tiny_llm(block_size=block_size, max_batch_tokens=50).generate([*prompts, *prompts], GREEDY)
    for prompt, output in zip([*prompts, *prompts], outputs, strict=True):
        assert output.outputs[0].token_ids == greedy_without_cache(tiny_model(), prompt, 12)
