"""Stock transformers runs a converted folder: same logits as our model, for every generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.golden.test_gguf_oracle import QUESTION, STEPS
from tests.golden.test_llama_oracle import ATOL, GENERATIONS, prompts, random_model

from telechat import load_model
from telechat.checkpoint import save_model
from telechat.checkpoint.hub import demo_folder
from telechat.cli.main import main
from telechat.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers", reason="the independent Llama is in transformers")


def export(tmp_path: Path, name: str, *options: str) -> Path:
    model = random_model(GENERATIONS[name])
    save_model(model, tmp_path / "model")
    target = tmp_path / "llama"
    assert (
        main(["checkpoint", "convert", str(tmp_path / "model"), str(target), "--to", "llama", *options]) == 0
    )
    return target


@pytest.mark.parametrize("name", GENERATIONS)
@torch.no_grad()
def test_logits(name: str, tmp_path: Path) -> None:
    target = export(tmp_path, name)
    llama = transformers.AutoModelForCausalLM.from_pretrained(target).eval()
    assert type(llama).__name__ == "LlamaForCausalLM"
    model = load_model(tmp_path / "model", device="cpu")
    input_ids = prompts(model.config, 40)
    torch.testing.assert_close(llama(input_ids).logits, model(input_ids), atol=ATOL, rtol=0)


@torch.no_grad()
def test_length_beyond_the_trained_one(tmp_path: Path) -> None:
    """`--length` fixes base and attention scaling for prompts that long."""
    target = export(tmp_path, "telechat2-115b", "--length", "150")
    llama = transformers.AutoModelForCausalLM.from_pretrained(target).eval()
    model = load_model(tmp_path / "model", device="cpu")
    input_ids = prompts(model.config, 150)
    torch.testing.assert_close(llama(input_ids).logits, model(input_ids), atol=ATOL, rtol=0)
    assert llama.config.max_position_embeddings == 150


@torch.no_grad()
def test_the_folder_for_vllm_runs_in_transformers(tmp_path: Path) -> None:
    """By its Auto classes alone: config, tokenizer, chat template, and a greedy answer of 64 tokens."""
    out = tmp_path / "out"
    assert main(["export", "vllm", "demo", str(out), "--dtype", "float32"]) == 0
    config = transformers.AutoConfig.from_pretrained(out)
    stock = transformers.AutoTokenizer.from_pretrained(out)
    assert (config.model_type, config.eos_token_id, stock.eos_token_id) == ("llama", 2, 2)
    ours = load_tokenizer(demo_folder())
    for text in (QUESTION, "hello world 123", " a\n\tb  c ", "ＡＢ́ﬁ \r\n🙂"):
        assert stock(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    messages = [
        {"role": "system", "content": "简短回答"},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好！"},
        {"role": "user", "content": QUESTION},
    ]
    for part in (messages, messages[1:], messages[3:]):
        prompt = stock.apply_chat_template(part, add_generation_prompt=True, return_dict=False)
        assert prompt == ours.apply_chat_template(part)
    llama = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    made = llama.generate(torch.tensor([prompt]), max_new_tokens=STEPS, do_sample=False)[0, len(prompt) :]
    model, ids = load_model("demo", device="cpu", dtype="float32"), list(prompt)
    for _ in range(STEPS):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert made.tolist() == ids[len(prompt) :]
