"""Requests with adapters: each answers as the merged model would, whatever is beside it in the batch."""

from __future__ import annotations

import asyncio
import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.checkpoint.adapters import random_adapter
from tests.unit.engine.engine_samples import byte_tokenizer, random_prompts, tiny_llm, tiny_model
from tests.unit.ops.cpu.conftest import skip_without_kernels

from telechat.checkpoint import Adapter, AdapterConfig, merge_adapter, write_adapter
from telechat.device import MemoryInfo
from telechat.engine import LLM, AsyncEngine, QueueFullError, SamplingParams
from telechat.engine.channel import LoadAdapter, UnloadAdapter
from telechat.engine.engine import Engine
from telechat.errors import CheckpointError, ConfigError, RequestError, TelechatError
from telechat.layers.moe import MoeConfig
from telechat.models import TeleChatModel, build_model, initialise
from telechat.models.native import NativeExecutor
from telechat.models.paged import TorchExecutor

NUM_ADAPTERS = 8
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
# Longer than a block, so that a beginning could be shared where it must not be.
PROMPT = random_prompts(1, seed=3, longest=60)[0] * 2
KINDS = [
    AdapterConfig(r=4, lora_alpha=8, target_modules=("query", "key_value")),
    AdapterConfig(r=9, lora_alpha=9, target_modules=("gate_proj", "up_proj", "down_proj"), use_rslora=True),
    AdapterConfig(r=2, lora_alpha=2, target_modules=("dense", "key_value", "lm_head")),
]


@cache
def model_of(form: str) -> TeleChatModel:
    """One that the CPU kernels take, or one that they do not."""
    if form == "torch":
        return copy.deepcopy(tiny_model())  # hooks are put on its layers
    skip_without_kernels()
    config = tiny_model().config.replace(hidden_size=64)
    model = build_model(config, rope_mode="static")
    initialise(model, seed=1)
    return model.eval().requires_grad_(False)


def adapter_of(model: TeleChatModel, number: int) -> Adapter:
    return random_adapter(model.config, seed=number, settings=KINDS[number % len(KINDS)], size=0.25)


@cache
def alone(form: str, number: int | None) -> list[int]:
    """The tokens of the merged model, asked alone; None is the model itself."""
    model = model_of(form)
    if number is not None:
        model = copy.deepcopy(model)
        merge_adapter(model, adapter_of(model, number))
    return tiny_llm(model).generate(PROMPT, GREEDY)[0].outputs[0].token_ids


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Adapter folders by form of the model and name; half of them in Llama names."""
    found: dict[str, dict[str, Path]] = {"torch": {}, "native": {}}
    for form, by_name in found.items():
        if form == "native":
            skip_without_kernels()
        for number in range(NUM_ADAPTERS):
            folder = tmp_path_factory.mktemp(f"{form}-{number}")
            model = model_of(form)
            spelling: Any = "llama" if number % 2 else "official"
            write_adapter(adapter_of(model, number), folder, model.config, spelling=spelling)
            by_name[f"a{number}"] = folder
    return found


def answers(llm: LLM, names: list[str | None], prompt: list[int] = PROMPT) -> list[list[int]]:
    """The same prompt for each adapter, all in the engine at once."""
    groups = [llm.intake.make_requests(prompt, GREEDY, adapter=name) for name in names]
    requests = [request for [request] in groups]
    for request in requests:
        llm.engine.add(request)
    while llm.engine.has_work:
        llm.engine.step()
    assert all(request.error is None for request in requests)
    return [request.token_ids for request in requests]


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"num_blocks": 100, "block_size": 16, "max_batch_tokens": 2048},
    "in pieces": {"max_batch_tokens": 24, "block_size": 16},
    "too few blocks": {"num_blocks": 23, "block_size": 16},
    "deterministic": {"deterministic": True, "block_size": 16},
    "guessing": {"speculate": "prompt-lookup", "block_size": 16},
}


@pytest.mark.parametrize("form", ["torch", "native"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_eight_adapters_in_one_batch_answer_as_the_merged_models(
    form: str, kind: str, folders: dict[str, dict[str, Path]]
) -> None:
    llm = tiny_llm(model_of(form), adapters=folders[form], max_batch_size=9, **SETTINGS[kind])
    assert isinstance(llm.executor, NativeExecutor if form == "native" else TorchExecutor)
    names = [None, *folders[form]]
    expected = [alone(form, None if name is None else int(name[1:])) for name in names]
    assert len({tuple(tokens) for tokens in expected}) == len(expected)
    # Twice: the second time beginnings are in the cache, those of the same adapter only.
    assert answers(llm, names) == expected
    assert answers(llm, names[::-1]) == expected[::-1]
    stats = llm.stats()
    if kind == "too few blocks":
        assert stats.num_preemptions
    elif kind == "plain":
        assert stats.num_steps <= 2 * (GREEDY.max_tokens or 0) + 4


def test_a_draft_model_guesses_for_adapters_too(folders: dict[str, dict[str, Path]]) -> None:
    draft = copy.deepcopy(model_of("torch"))
    llm = tiny_llm(model_of("torch"), adapters=folders["torch"], speculate=draft, block_size=16)
    names = [None, "a1", "a2"]
    assert answers(llm, names) == [alone("torch", number) for number in (None, 1, 2)]
    assert llm.stats().num_draft_tokens


def test_only_equal_adapters_share_a_beginning(folders: dict[str, dict[str, Path]]) -> None:
    llm = tiny_llm(model_of("torch"), adapters=folders["torch"], block_size=16)
    hits = []
    for name in ("a1", "a2", None, "a1"):
        output = llm.generate(PROMPT, GREEDY, adapter=name)[0]
        hits.append(output.num_cached_tokens)
    assert hits[:3] == [0, 0, 0] and hits[3] > 0


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_on_a_quantised_model(quantize: str, folders: dict[str, dict[str, Path]]) -> None:
    """Beside others as alone; what an adapter adds to integer weights is tested with the executors."""
    from telechat.models.quantized import quantize_layers
    from telechat.ops.quantized import WeightScheme

    skip_without_kernels()
    config = model_of("native").config.replace(ffn_hidden_size=64)
    model = build_model(config, rope_mode="static")
    initialise(model, seed=1)
    quantize_layers(model, WeightScheme.named(quantize, 32))
    llm = tiny_llm(model.eval(), deterministic=True)
    for number in range(NUM_ADAPTERS):
        adapter = random_adapter(config, seed=number, settings=KINDS[0], size=0.25)
        llm.executor.load_adapter(number, adapter.scaled_layers())
        llm.adapters._by_name[f"a{number}"] = number
    names = [None, *(f"a{number}" for number in range(NUM_ADAPTERS))]
    expected = [answers(llm, [name])[0] for name in names]
    assert len({tuple(tokens) for tokens in expected}) > NUM_ADAPTERS // 2
    assert answers(llm, names) == expected


def test_a_name_may_come_back_with_other_weights(folders: dict[str, dict[str, Path]]) -> None:
    """What was cached with the adapter before it is not taken for its own."""
    llm = tiny_llm(model_of("torch"), block_size=16)
    for number in (1, 2):
        llm.load_adapter("mine", folders["torch"][f"a{number}"])
        assert answers(llm, ["mine"]) == [alone("torch", number)]
        llm.unload_adapter("mine")
    with pytest.raises(RequestError, match="no adapter 'mine'"):
        llm.generate(PROMPT, GREEDY, adapter="mine")
    assert answers(llm, [None]) == [alone("torch", None)]


def test_requests_that_have_begun_keep_an_unloaded_adapter(folders: dict[str, dict[str, Path]]) -> None:
    llm = tiny_llm(model_of("torch"), adapters={"a1": folders["torch"]["a1"]}, max_loras=1)
    stream = llm.chat([{"role": "user", "content": "hello"}], GREEDY, adapter="a1", stream=True)
    first = next(stream)
    llm.unload_adapter("a1")
    with pytest.raises(RequestError, match="no adapter"):
        llm.generate(PROMPT, GREEDY, adapter="a1")
    with pytest.raises(ConfigError, match=r"1 adapters are loaded, 1 of them until their requests end"):
        llm.load_adapter("a2", folders["torch"]["a2"])
    ids = [*first.token_ids, *(token_id for delta in stream for token_id in delta.token_ids)]
    llm.load_adapter("a2", folders["torch"]["a2"])  # there is room now
    merged = copy.deepcopy(model_of("torch"))
    merge_adapter(merged, adapter_of(merged, 1))
    chat = tiny_llm(merged).chat([{"role": "user", "content": "hello"}], GREEDY)
    assert ids == chat.outputs[0].token_ids


def test_vectors_of_an_adapter(folders: dict[str, dict[str, Path]]) -> None:
    llm = tiny_llm(model_of("torch"), adapters=folders["torch"])
    merged = copy.deepcopy(model_of("torch"))
    merge_adapter(merged, adapter_of(merged, 1))
    found = llm.embed(PROMPT, adapter="a1")[0].embedding
    torch.testing.assert_close(found, tiny_llm(merged).embed(PROMPT)[0].embedding, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, llm.embed(PROMPT)[0].embedding, atol=1e-2)


def test_what_cannot_be_served_is_refused_and_nothing_is_lost(
    folders: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    model = model_of("torch")
    llm = tiny_llm(model, adapters={"a1": folders["torch"]["a1"]}, max_lora_rank=9)

    def written(name: str, settings: AdapterConfig, *, ffn: int = 48) -> Path:
        config = model.config.replace(ffn_hidden_size=ffn)
        write_adapter(random_adapter(config, settings=settings), tmp_path / name, config)
        return tmp_path / name

    everything = ("query", "down_proj")
    dora = AdapterConfig(r=2, lora_alpha=2, target_modules=everything, use_dora=True)
    wide = AdapterConfig(r=10, lora_alpha=2, target_modules=everything)
    plain = AdapterConfig(r=2, lora_alpha=2, target_modules=everything)
    for folder, message in (
        (written("dora", dora), "DoRA"),
        (written("wide", wide), "rank 10; at most 9"),
        (written("other", plain, ffn=64), "shape"),
        (tmp_path / "nowhere", "has no adapter_config.json"),
    ):
        with pytest.raises((CheckpointError, ConfigError), match=message):
            llm.load_adapter("new", folder)
    for name in ("", "a\n", "x" * 300):
        with pytest.raises(ConfigError, match="no name for an adapter"):
            llm.load_adapter(name, folders["torch"]["a2"])
    with pytest.raises(ConfigError, match="already"):
        llm.load_adapter("a1", folders["torch"]["a2"])
    assert answers(llm, [None, "a1"]) == [alone("torch", None), alone("torch", 1)]
    assert llm.adapters.names == ("a1",)
    with pytest.raises(ConfigError, match=r"Adapter 'b': .* has no adapter_config"):
        tiny_llm(model, adapters={"b": tmp_path / "nowhere"})
    with pytest.raises(ConfigError, match="max_loras is 0"):
        tiny_llm(model, max_loras=0)


def test_adapters_of_experts_are_refused(tmp_path: Path) -> None:
    config = tiny_model().config.replace(moe=MoeConfig(num_experts=2, num_experts_per_token=1))
    model = build_model(config, rope_mode="static")
    initialise(model, seed=0)
    settings = AdapterConfig(r=2, lora_alpha=2, target_modules=("up_proj",))
    write_adapter(random_adapter(config, settings=settings), tmp_path, config)
    with pytest.raises(ConfigError, match="experts are only served merged"):
        tiny_llm(model.eval(), adapters={"x": tmp_path})


def test_a_closed_engine_leaves_the_model_as_it_was(folders: dict[str, dict[str, Path]]) -> None:
    model = copy.deepcopy(tiny_model())
    llm = tiny_llm(model, adapters=folders["torch"])
    assert any(module._forward_hooks for module in model.modules())
    llm.close()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_request_whose_adapter_went_before_it_began(folders: dict[str, dict[str, Path]]) -> None:
    llm = tiny_llm(model_of("torch"), adapters={"a1": folders["torch"]["a1"]})
    outputs = llm.generate_each([PROMPT, PROMPT], GREEDY, adapter="a1")
    llm.unload_adapter("a1")
    with pytest.raises(RequestError, match="has been unloaded"):
        next(outputs)
    assert not llm.engine.has_work


def test_an_engine_made_by_hand_has_no_adapters(folders: dict[str, dict[str, Path]]) -> None:
    llm = tiny_llm(model_of("torch"), adapters={"a1": folders["torch"]["a1"]})
    engine = Engine(llm.executor, num_blocks=20, block_size=16, max_batch_size=2, max_batch_tokens=64)
    [request] = llm.intake.make_requests(PROMPT, GREEDY, adapter="a1")
    with pytest.raises(RequestError, match="unloaded"):
        engine.add(request)


def test_the_asynchronous_engine_loads_and_unloads_while_it_runs(
    folders: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    llm = LLM(model_of("torch"), byte_tokenizer(), adapters={"a1": folders["torch"]["a1"]})
    engine = AsyncEngine(llm)

    async def tokens(name: str | None) -> list[int]:
        stream = engine.stream(PROMPT, GREEDY, adapter=name)
        return [token_id async for delta in stream for token_id in delta.token_ids]

    async def scenario() -> None:
        assert engine.adapters == ("a1",)
        asked = [asyncio.ensure_future(tokens(name)) for name in (None, "a1")]
        await engine.load_adapter("a2", folders["torch"]["a2"])
        assert engine.adapters == ("a1", "a2")
        found = [*await asyncio.gather(*asked), await tokens("a2")]
        assert found == [alone("torch", number) for number in (None, 1, 2)]
        vector = await engine.embed(PROMPT, adapter="a2")
        assert vector != await engine.embed(PROMPT)
        with pytest.raises(ConfigError, match="has no adapter_config"):
            await engine.load_adapter("a3", tmp_path)
        with pytest.raises(ConfigError, match="already"):
            await engine.load_adapter("a2", folders["torch"]["a3"])
        await engine.unload_adapter("a2")
        with pytest.raises(RequestError, match="no adapter 'a2'"):
            await tokens("a2")
        with pytest.raises(RequestError, match="no adapter 'a2'"):
            await engine.unload_adapter("a2")
        # Whoever asked for it goes away; the adapter comes all the same.
        loading = asyncio.ensure_future(engine.load_adapter("a3", folders["torch"]["a3"]))
        await asyncio.sleep(0)
        loading.cancel()
        async with asyncio.timeout(20):
            while "a3" not in engine.adapters:
                await asyncio.sleep(0.01)
        assert await tokens("a3") == alone("torch", 3)

    try:
        asyncio.run(scenario())
    finally:
        engine.close()
    with pytest.raises(TelechatError, match="closed"):
        asyncio.run(engine.load_adapter("a4", tmp_path))


def test_the_memory_limit_counts_adapters_that_come_later(
    folders: dict[str, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telechat.engine.plan.memory_in_use", lambda device: 0)
    limit = 1 << 28
    spare = tiny_llm(model_of("torch"), memory_limit=limit).cache_plan.spare_bytes
    assert spare is not None
    limit -= spare  # the cache takes all of it
    llm = tiny_llm(model_of("torch"), memory_limit=limit)
    with pytest.raises(ConfigError, match=r"The adapter 'a1' takes 0\.\d MiB; .* 0\.0 MiB are left"):
        llm.load_adapter("a1", folders["torch"]["a1"])
    assert not llm.adapters.names

    reserving = tiny_llm(model_of("torch"), memory_limit=limit, max_lora_rank=9, reserved_loras=1)
    assert reserving.cache_plan.num_blocks < llm.cache_plan.num_blocks
    left = reserving.adapters.memory_left
    reserving.load_adapter("a1", folders["torch"]["a1"])
    assert reserving.generate(PROMPT, GREEDY, adapter="a1")[0].outputs[0].token_ids == alone("torch", 1)
    reserving.unload_adapter("a1")
    assert reserving.adapters.memory_left == left
    with pytest.raises(ConfigError, match="reserved_loras is -1"):
        tiny_llm(model_of("torch"), reserved_loras=-1)


def test_an_adapter_that_does_not_fit_into_the_free_memory(
    folders: dict[str, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = tiny_llm(model_of("torch"))
    monkeypatch.setattr("telechat.engine.adapters.memory_info", lambda device: MemoryInfo(1000, 10**9))
    with pytest.raises(ConfigError, match="takes"):
        llm.load_adapter("a1", folders["torch"]["a1"])
    assert answers(llm, [None]) == [alone("torch", None)]


def test_an_order_that_is_refused_leaves_the_adapter(folders: dict[str, dict[str, Path]]) -> None:
    engine = AsyncEngine(tiny_llm(model_of("torch"), adapters={"a1": folders["torch"]["a1"]}), max_pending=1)

    async def scenario() -> None:
        stream = engine.stream(PROMPT, GREEDY.replace(max_tokens=100))
        with pytest.raises(QueueFullError):
            await engine.unload_adapter("a1")
        assert engine.adapters == ("a1",)
        await stream.aclose()
        await engine.unload_adapter("a1")
        assert not engine.adapters

    try:
        asyncio.run(scenario())
    finally:
        engine.close()


def test_an_engine_started_again_forgets_what_was_unloaded(
    folders: dict[str, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of adapters that come with the model: the process loads them again, under the same names."""
    first = tiny_llm(model_of("torch"), adapters={name: folders["torch"][name] for name in ("a1", "a2")})
    engine = AsyncEngine(first)

    async def scenario() -> list[Any]:
        await engine.unload_adapter("a1")
        await engine.unload_adapter("a2")
        await engine.load_adapter("a1", folders["torch"]["a3"])
        sent: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(engine.worker, "send", sent.append)
            engine._reload_adapters()
        return sent

    try:
        orders = asyncio.run(scenario())
    finally:
        engine.close()
    found = [(type(order), order.name) for order in orders]
    assert found == [(UnloadAdapter, "a1"), (UnloadAdapter, "a2"), (LoadAdapter, "a1")]
    assert orders[-1].folder == str(folders["torch"]["a3"])
