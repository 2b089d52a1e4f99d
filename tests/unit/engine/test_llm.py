"""`LLM`: prompts in their forms, defaults from the folder, chat with and without streaming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.engine.engine_samples import (
    EOS,
    GREEDY,
    TRAINING_LENGTH,
    byte_tokenizer,
    random_prompts,
    tiny_llm,
    tiny_model,
)

from telechat.engine import LLM, SamplingParams
from telechat.engine.engine import Engine
from telechat.engine.request import Request
from telechat.errors import ConfigError, ContextLengthError, PromptError, RequestError

MESSAGES = [{"role": "user", "content": "你好"}]


def test_prompts_as_text_ids_and_lists_of_either() -> None:
    llm = tiny_llm()
    ids = llm.tokenizer.encode("hello")
    by_text = llm.generate("hello", GREEDY)
    assert len(by_text) == 1
    assert by_text[0].prompt_token_ids == ids
    texts = [output.text for output in llm.generate(["hello", ids, tuple(ids)], GREEDY)]
    assert texts == [by_text[0].text] * 3
    assert llm.generate(ids, GREEDY)[0].text == by_text[0].text
    assert llm.generate([], GREEDY) == []


def test_one_params_per_prompt() -> None:
    llm = tiny_llm()
    outputs = llm.generate(["a", "b"], [GREEDY.replace(max_tokens=2), GREEDY.replace(max_tokens=5)])
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 5]
    with pytest.raises(RequestError, match="1 sampling parameters were given for 2 prompts"):
        llm.generate(["a", "b"], [GREEDY])


def test_several_answers_to_one_prompt() -> None:
    params = SamplingParams(n=3, seed=11, max_tokens=8, ignore_eos=True)
    llm = tiny_llm()
    output = llm.generate("hi", params)[0]
    assert len({completion.text for completion in output.outputs}) == 3
    alone = llm.generate("hi", params.replace(n=1, seed=12))[0]
    assert output.outputs[1].token_ids == alone.outputs[0].token_ids
    assert output.text == output.outputs[0].text


def test_seeds() -> None:
    llm = tiny_llm()
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    first, second = llm.generate(["hi", "hi"], params.replace(seed=1))
    assert first.text == second.text
    other = llm.generate("hi", params.replace(seed=2))[0]
    assert other.text != first.text
    unseeded = {tuple(output.outputs[0].token_ids) for output in llm.generate(["hi"] * 3, params)}
    assert len(unseeded) == 3


@pytest.mark.parametrize(
    ("prompts", "error", "words"),
    [
        ("", PromptError, "empty"),
        (["fine", ""], PromptError, "empty"),
        ([[5], []], PromptError, "empty"),
        ("x" * TRAINING_LENGTH, ContextLengthError, f"{TRAINING_LENGTH} tokens; this model accepts 127"),
    ],
)
def test_a_bad_prompt_is_refused_before_anything_runs(
    prompts: str | list[str], error: type[Exception], words: str
) -> None:
    llm = tiny_llm()
    with pytest.raises(error, match=words) as caught:
        llm.generate(prompts, GREEDY)
    if prompts == ["fine", ""]:
        assert caught.value.__notes__ == ["(prompt 1 of 2, counted from 0)"]


def test_chat_uses_the_conversation_format_and_streams_the_same() -> None:
    llm = tiny_llm()
    answer = llm.chat(MESSAGES, GREEDY)
    assert answer.prompt_token_ids == [4, *llm.tokenizer.encode("你好"), 5]
    deltas = list(llm.chat(MESSAGES, GREEDY, stream=True))
    assert "".join(delta.text for delta in deltas) == answer.text
    assert deltas[-1].finish_reason == answer.outputs[0].finish_reason
    with_tools = llm.chat(MESSAGES, GREEDY, tools=[{"type": "function"}])
    assert with_tools.prompt_token_ids[0] == 7


def test_a_closed_stream_leaves_nothing_behind() -> None:
    llm = tiny_llm()
    stream = llm.chat(MESSAGES, GREEDY.replace(max_tokens=100), stream=True)
    next(stream)
    # Another call beside an open stream does not disturb it, nor it the call.
    assert llm.generate("hi", GREEDY)[0].text == tiny_llm().generate("hi", GREEDY)[0].text
    stream.close()  # type: ignore[attr-defined]
    assert not llm.engine.has_work
    assert llm.chat(MESSAGES, GREEDY).text == tiny_llm().chat(MESSAGES, GREEDY).text


def test_an_interrupted_batch_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = tiny_llm(max_batch_size=2)
    step = Engine.step
    calls = iter(range(3))

    def interrupted(engine: Engine) -> list[Request]:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return step(engine)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["a", "b", "c"], GREEDY)
    assert not llm.engine.has_work
    assert llm.generate("a", GREEDY)[0].text == tiny_llm().generate("a", GREEDY)[0].text


def test_outputs_are_handed_out_as_they_complete() -> None:
    llm = tiny_llm()
    each = [GREEDY.replace(max_tokens=9), GREEDY.replace(max_tokens=2), GREEDY.replace(max_tokens=5, n=2)]
    outputs = list(llm.generate_each(["a", "b", "c"], each))
    assert [number for number, _ in outputs] == [1, 2, 0]
    assert [output.text for _, output in sorted(outputs, key=lambda pair: pair[0])] == [
        output.text for output in llm.generate(["a", "b", "c"], each)
    ]
    assert len(outputs[1][1].outputs) == 2
    with pytest.raises(PromptError):
        llm.generate_each(["a", ""])  # before anything is asked of the iterator


def test_returned_logits_and_scores() -> None:
    llm = tiny_llm()
    params = GREEDY.replace(max_tokens=3, repetition_penalty=1.5)
    completion = llm.generate("hi", params, return_logits="all", return_scores=4)[0].outputs[0]
    assert isinstance(completion.logits, torch.Tensor)
    assert completion.logits.shape == (3, llm.config.vocab_size)
    assert completion.logits.dtype == torch.float32
    assert isinstance(completion.scores, list)
    assert [len(step) for step in completion.scores] == [4] * 3
    assert [max(step, key=lambda i: step[i]) for step in completion.scores] == completion.token_ids
    assert llm.generate("hi", params)[0].outputs[0].logits is None


def test_logprobs_are_reported_per_token() -> None:
    completion = tiny_llm().generate("hi", GREEDY.replace(logprobs=3))[0].outputs[0]
    assert completion.logprobs is not None
    assert [entry.token_id for entry in completion.logprobs] == completion.token_ids
    assert all(
        len(entry.top) == 3 and entry.top[0] == (entry.token_id, entry.logprob)
        for entry in completion.logprobs
    )


def test_defaults_come_from_the_folder(tiny_model_folder: Path) -> None:
    llm = LLM(tiny_model_folder)
    assert llm.name == tiny_model_folder.name
    assert llm.default_params == SamplingParams(temperature=0.0, max_total_tokens=512)
    assert llm.max_model_len == llm.config.training_seqlen == 1024
    assert llm.model.dtype == torch.float32
    assert llm.eos_token_ids == (EOS,)
    assert LLM(tiny_model_folder, dtype="bfloat16").model.dtype == torch.bfloat16
    answer = llm.chat(MESSAGES, llm.default_params.replace(max_tokens=4))
    assert len(answer.outputs[0].token_ids) <= 4


def test_longer_context_on_request(tiny_model_folder: Path) -> None:
    llm = LLM(tiny_model_folder, max_model_len=3000)
    assert (llm.model.rope_mode, llm.model.static_length) == ("static", 3000)
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    assert len(llm.generate([[9] * 2000], params)[0].outputs[0].token_ids) == 2
    official = LLM(tiny_model_folder, max_model_len=3000, rope_mode="official")
    assert official.model.rope_mode == "official"


def test_end_tokens_of_the_generation_config_count_too() -> None:
    llm = tiny_llm(generation_config={"eos_token_id": [EOS, 77]})
    params = SamplingParams(temperature=0.0, logit_bias={77: 100.0}, max_tokens=5)
    output = llm.generate("hi", params)[0]
    assert (output.outputs[0].token_ids, output.finish_reason) == ([77], "stop")


@pytest.mark.parametrize("wrong", ["x", [EOS, "x"], {}, True, 10**6, -1])
def test_end_tokens_that_cannot_be(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json has eos_token_id"):
        tiny_llm(generation_config={"eos_token_id": wrong})


def test_generation_settings_out_of_range_name_the_file() -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json: top_p is 7"):
        tiny_llm(generation_config={"top_p": 7})


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        LLM(tiny_model())
    with pytest.raises(ConfigError, match="max_batch_size is 0"):
        LLM(tiny_model(), byte_tokenizer(), max_batch_size=0)
    with pytest.raises(ConfigError, match="max_model_len is -3"):
        LLM(tiny_model(), byte_tokenizer(), max_model_len=-3)
    with pytest.raises(ConfigError, match="rotary table was made for 128"):
        LLM(tiny_model(), byte_tokenizer(), max_model_len=129)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_llm().generate(random_prompts(3, seed=3), GREEDY, progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "3/3" in printed.err


def test_precision_and_determinism_reach_what_computes(tiny_model_folder: Path) -> None:
    plain = LLM(tiny_model_folder)
    exact = LLM(tiny_model_folder, deterministic=True, kv_cache_dtype="int8")
    assert (plain.deterministic, exact.deterministic) == (False, True)
    executors: list[Any] = [plain.executor, exact.executor]
    assert [executor.deterministic for executor in executors] == [False, True]
    assert [executor.kv_dtype for executor in executors] == [torch.float32, torch.int8]
    assert LLM("demo", max_model_len=64).deterministic
    assert not LLM("demo", max_model_len=64, deterministic=False).deterministic
