"""The transformers model against the recorded outputs, and everything transformers does with it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.recorded import DATA, MIXTURE, OFFICIAL, VARIANTS, assert_close, has, ids, values
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    StaticCache,
    Trainer,
    TrainingArguments,
)

import telechat.hf as hf
from telechat.checkpoint import load_model
from telechat.errors import CheckpointError, ConfigError, PromptError

# A table of fp16 numbers rotates by slightly different angles at different positions: results that ought to
# be equal by theory differ by the rounding of cos and sin, 2**-11 each, carried through two or three layers.
FP16_TABLE_ATOL = 5e-3


def load(variant: str, **options: Any) -> hf.TelechatForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(DATA / variant, **options)
    model.generation_config.eos_token_id = None  # the recorded greedy answers run on
    model.generation_config.pad_token_id = 3
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_recorded_logits_and_greedy(variant: str) -> None:
    model = load(variant)
    found = model(ids(variant, "input_ids"), ids(variant, "attention_mask") if has(variant, "loss") else None)
    assert_close(found.logits, values(variant, "logits"))
    prompt, expected = ids(variant, "greedy_prompt"), ids(variant, "greedy_ids")
    out = model.generate(
        prompt,
        max_new_tokens=len(expected),
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert out.sequences[0, prompt.shape[1] :].tolist() == expected.tolist()
    assert_close(torch.cat(out.logits), values(variant, "greedy_step_logits"))


@pytest.mark.parametrize("variant", OFFICIAL)
@torch.no_grad()
def test_recorded_hidden_states_and_left_padding(variant: str) -> None:
    model = load(variant)
    found = model(ids(variant, "input_ids"), ids(variant, "attention_mask"), output_hidden_states=True)
    expected = values(variant, "hidden_states")
    assert len(found.hidden_states) == model.config.n_layer + 1
    assert_close(torch.stack([hidden[0] for hidden in found.hidden_states]), expected)
    mask = ids(variant, "leftpad_attention_mask")
    logits = model(ids(variant, "leftpad_input_ids"), mask).logits
    assert_close(logits[mask == 1], values(variant, "leftpad_logits")[mask == 1])
    answers = ids(variant, "leftpad_greedy_ids")
    out = model.generate(
        ids(variant, "leftpad_input_ids"),
        attention_mask=mask,
        max_new_tokens=answers.shape[1],
        do_sample=False,
    )
    assert out[:, mask.shape[1] :].tolist() == answers.tolist()


@pytest.mark.parametrize("variant", [v for v in OFFICIAL if has(v, "cross_cached_ids")])
def test_growth_past_training_length_with_old_keys(variant: str) -> None:
    prompt, expected = ids(variant, "cross_cached_prompt"), ids(variant, "cross_cached_ids")
    out = load(variant).generate(prompt, max_new_tokens=len(expected), do_sample=False)
    assert out[0, prompt.shape[1] :].tolist() == expected.tolist()


@pytest.mark.parametrize("variant", OFFICIAL)
def test_growth_past_training_length_recomputed(variant: str) -> None:
    prompt, expected = ids(variant, "cross_prompt"), ids(variant, "cross_nocache_ids")
    out = load(variant).generate(prompt, max_new_tokens=len(expected), do_sample=False, use_cache=False)
    assert out[0, prompt.shape[1] :].tolist() == expected.tolist()


@pytest.mark.parametrize("variant", ["telechat-7b-tiny", "telechat2-tiny"])
@torch.no_grad()
def test_a_padded_row_gives_what_it_gives_alone(variant: str) -> None:
    model = load(variant)
    prompt = ids(variant, "greedy_prompt")
    padded = torch.cat([torch.full((1, 9), 3), prompt], dim=1)
    batch = torch.cat([padded, ids(variant, "long_input_ids")[:, : padded.shape[1]]])
    mask = torch.ones_like(batch)
    mask[0, :9] = 0
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True}
    together = model.generate(batch, attention_mask=mask, output_logits=True, **options)
    alone = model.generate(prompt, output_logits=True, **options)
    assert together.sequences[0, 9:].tolist() == alone.sequences[0].tolist()
    assert_close(torch.stack([step[0] for step in together.logits]), torch.cat(alone.logits))
    # Without positions a token's column counts, as in the official code: the same up to the fp16 tables.
    by_column = model(padded, mask[:1]).logits[0, 9:]
    assert_close(by_column, model(prompt).logits[0], FP16_TABLE_ATOL)
    assert (by_column - model(prompt).logits[0]).abs().max() > 0


@pytest.mark.parametrize("variant", ["telechat2-tiny", MIXTURE])
def test_beams(variant: str) -> None:
    model = load(variant)
    prompt = ids(variant, "greedy_prompt")[:, :6]
    batch = torch.cat([prompt, torch.cat([torch.full((1, 2), 3), prompt[:, 1:5]], dim=1)])
    mask = torch.ones_like(batch)
    mask[1, :2] = 0
    options: dict[str, Any] = {
        "num_beams": 3,
        "num_return_sequences": 2,
        "max_new_tokens": 8,
        "do_sample": False,
    }
    out = model.generate(
        batch, attention_mask=mask, output_scores=True, return_dict_in_generate=True, **options
    )
    again = model.generate(batch, attention_mask=mask, use_cache=False, **options)
    assert out.sequences.tolist() == again.tolist()
    assert len(out.scores) == 8 and out.sequences_scores.isfinite().all()


def test_scores_differ_from_logits_by_the_penalty() -> None:
    model = load("telechat2-tiny")
    out = model.generate(
        ids("telechat2-tiny", "greedy_prompt"),
        max_new_tokens=3,
        do_sample=False,
        repetition_penalty=1.5,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert len(out.scores) == len(out.logits) == 3
    assert not torch.equal(out.scores[0], out.logits[0])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_caches_of_transformers(kind: str) -> None:
    variant = "telechat2-tiny"
    model = load(variant)
    tokens = ids(variant, "input_ids")
    cache = (
        DynamicCache(config=model.config)
        if kind == "dynamic"
        else StaticCache(model.config, max_cache_len=40)
    )
    first = model(tokens[:, :10], past_key_values=cache)
    second = model(tokens[:, 10:], past_key_values=first.past_key_values)
    assert_close(torch.cat([first.logits, second.logits], dim=1), model(tokens).logits)
    out = model.generate(tokens[:1, :8], max_new_tokens=6, do_sample=False, cache_implementation=kind)
    assert out.tolist() == model.generate(tokens[:1, :8], max_new_tokens=6, do_sample=False).tolist()
    with pytest.raises(PromptError, match="24 cached and 2 new ones make 26"):
        model(tokens[:, :2], attention_mask=torch.ones(2, 2), past_key_values=cache)


@torch.no_grad()
def test_forward_options() -> None:
    variant = "telechat2-tiny"
    model, tokens = load(variant), ids(variant, "input_ids")
    full = model(tokens).logits
    assert_close(model(tokens, logits_to_keep=3).logits, full[:, -3:])
    assert_close(model(tokens, logits_to_keep=torch.tensor([1, 4])).logits, full[:, [1, 4]])
    assert torch.equal(model(tokens, return_dict=False)[0], full)
    assert model(tokens, use_cache=False).past_key_values is None
    assert model(tokens).past_key_values.get_seq_length() == tokens.shape[1]
    shifted = model(tokens, position_ids=torch.arange(5, 5 + tokens.shape[1])[None]).logits
    assert_close(shifted, full, FP16_TABLE_ATOL)
    assert not torch.equal(shifted, full)
    with pytest.raises(ConfigError, match="output_attentions"):
        model(tokens, output_attentions=True)
    with pytest.raises(ConfigError, match="inputs_embeds"):
        model(tokens, inputs_embeds=torch.zeros(1, 1, 8))
    assert torch.equal(model(tokens, inputs_embeds=None).logits, model(tokens).logits)


@pytest.mark.parametrize("variant", OFFICIAL)
def test_loss_and_gradients(variant: str) -> None:
    model = load(variant)
    arguments = (ids(variant, "input_ids"), ids(variant, "attention_mask"))
    loss = model(*arguments, labels=ids(variant, "labels")).loss
    assert_close(loss, values(variant, "loss"))
    loss.backward()
    expected = values(variant, "grad_h0_key_value")
    assert_close(key_value_gradient(model), expected)
    plain = {name: gradient(p) for name, p in model.named_parameters()}
    model.zero_grad()
    model.train()
    model.gradient_checkpointing_enable()
    assert model.transformer.gradient_checkpointing
    output = model(*arguments, labels=ids(variant, "labels"))
    assert output.past_key_values is None
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert_close(gradient(parameter), plain[name])


def gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


def key_value_gradient(model: hf.TelechatForCausalLM) -> Tensor:
    return gradient(model.transformer.h[0].self_attention.key_value.weight)


def test_one_trainer_step(tmp_path: Path) -> None:
    variant = "telechat-7b-tiny"
    model = load(variant)
    rows = [{"input_ids": row, "labels": row} for row in ids(variant, "input_ids")]
    before = model.transformer.h[1].mlp.down_proj.bias.detach().clone()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        gradient_checkpointing=True,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    result = Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert result.training_loss > 0
    assert not torch.equal(before, model.transformer.h[1].mlp.down_proj.bias)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_saved_folder_is_official_again(variant: str, tmp_path: Path) -> None:
    model = load(variant)
    model.save_pretrained(tmp_path)
    expected = model(ids(variant, "input_ids")).logits
    assert_close(
        AutoModelForCausalLM.from_pretrained(tmp_path)(ids(variant, "input_ids")).logits, expected, 0
    )
    assert_close(load_model(tmp_path, device="cpu")(ids(variant, "input_ids")), expected, 0)
    before = json.loads((DATA / variant / "config.json").read_text())
    after = json.loads((tmp_path / "config.json").read_text())
    assert before.pop("torch_dtype") == after.pop("dtype")
    before.pop("architectures", None)
    assert {key: after.get(key) for key in before} == before


@pytest.mark.parametrize("name", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_is_the_one_asked_for(name: str) -> None:
    variant = "telechat2-tiny"
    model = load(variant, attn_implementation=name)
    assert_close(model(ids(variant, "input_ids")).logits, values(variant, "logits"))
    (choice,) = model._decoder.transformer.h[0].self_attention.attention.choices.values()
    assert choice.name == {"eager": "reference", "sdpa": "sdpa"}[name]
    with pytest.raises(ConfigError, match="flex_attention"):
        AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(DATA / variant, attn_implementation="flex_attention")
        )


@torch.no_grad()
def test_copies_and_new_tokens() -> None:
    model = load("telechat-7b-tiny")
    tokens = ids("telechat-7b-tiny", "input_ids")
    twin = copy.deepcopy(model)
    twin.transformer.ln_f.weight.zero_()
    assert twin(tokens).logits.abs().max() == 0 and model(tokens).logits.abs().max() > 0
    model.resize_token_embeddings(520)
    assert model(torch.full((1, 3), 519)).logits.shape == (1, 3, 520)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight


def test_fresh_weights_have_their_distribution() -> None:
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(DATA / MIXTURE, initializer_range=0.5)
    model = AutoModelForCausalLM.from_config(config)
    for name in ("transformer.h.0.mlp.router.weight", "transformer.word_embeddings.weight"):
        assert 0.4 < model.get_parameter(name).std() < 0.6, name
    assert bool((model.transformer.ln_f.weight == 1).all())
    assert bool((model.transformer.h[0].self_attention.dense.bias == 0).all())


def edited(folder: Path, variant: str, **changes: Any) -> Path:
    """A copy of a variant whose tensors are changed: None leaves one out."""
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Any] = {**load_file(DATA / variant / "model.safetensors"), **changes}
    save_file(
        {name: t for name, t in tensors.items() if t is not None},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    (folder / "config.json").write_bytes((DATA / variant / "config.json").read_bytes())
    return folder


def test_a_gap_in_the_checkpoint_is_an_error(tmp_path: Path) -> None:
    name = "transformer.h.1.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=rf"lacks {name}"):
        AutoModelForCausalLM.from_pretrained(edited(tmp_path, "telechat2-tiny", **{name: None}))


def test_a_tensor_without_a_place_is_an_error(tmp_path: Path) -> None:
    folder = edited(tmp_path, "telechat2-tiny", **{"transformer.h.9.what": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"transformer\.h\.9\.what, which this model has no place for"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_misshapen_tensor_is_an_error(tmp_path: Path) -> None:
    folder = edited(tmp_path, "telechat2-tiny", **{"transformer.ln_f.weight": torch.ones(3)})
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_number_of_experts_comes_from_the_tensors(tmp_path: Path) -> None:
    folder = edited(tmp_path, MIXTURE)
    raw = json.loads((folder / "config.json").read_text())
    del raw["moe_config"]["expert_num"]
    (folder / "config.json").write_text(json.dumps(raw))
    for model in (
        AutoModelForCausalLM.from_pretrained(folder),
        hf.TelechatForCausalLM.from_pretrained(folder),
    ):
        assert len(model.transformer.h[0].mlp.local_experts) == 8


def test_dtype_is_the_one_asked_for() -> None:
    for key in ("dtype", "torch_dtype"):
        model = hf.TelechatForCausalLM.from_pretrained(DATA / "telechat2-tiny", **{key: torch.bfloat16})
        assert model.dtype == torch.bfloat16


def test_config_defaults_and_refusals() -> None:
    config = hf.TelechatConfig()
    assert (config.vocab_size, config.num_hidden_layers, config.tie_word_embeddings) == (160256, 30, True)
    changed = hf.TelechatConfig(n_embed=64, n_head=4, num_hidden_layers=3, hidden_dropout=0.1)
    fields = changed.to_telechat()
    assert (fields.hidden_size, fields.num_layers, fields.hidden_dropout) == (64, 3, 0.1)
    with pytest.raises(ConfigError, match="n_layer"):
        hf.TelechatConfig(n_layer=2.5)


@torch.no_grad()
def test_parameters_may_be_spread_by_a_device_map(tmp_path: Path) -> None:
    """Hooks of accelerate fetch layers from disk, and what layers share follows them."""
    variant = "telechat2-tiny"
    on_disk = ("transformer.word_embeddings", "transformer.h.1", "lm_head")
    in_memory = ("transformer.h.0", "transformer.h.2", "transformer.ln_f")
    model = load(
        variant,
        device_map={**dict.fromkeys(on_disk, "disk"), **dict.fromkeys(in_memory, "cpu")},
        offload_folder=str(tmp_path),
    )
    assert model.transformer.h[1].mlp.gate_proj.weight.device.type == "meta"
    mask = ids(variant, "leftpad_attention_mask")
    found = model(ids(variant, "leftpad_input_ids"), mask).logits
    assert_close(found[mask == 1], values(variant, "leftpad_logits")[mask == 1])
