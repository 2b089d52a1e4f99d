"""Worker: transformers' Llama in bf16 on an accelerator, by `generate`.

    python -m benchmarks.workers.gpu_transformers --shape 7B --attention sdpa

With `--static` its cache has a fixed size, and it compiles the decoding step: its fastest way.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import time

import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.shapes import SHAPES, Shape
from benchmarks.workers.loop import Case, Result, serve
from telechat.device import device_name, resolve_device, synchronize


class Peer:
    """The model; decoding is the time of a whole call less that of one which gives a single token."""

    def __init__(self, shape: Shape, device: torch.device, attention: str, *, static: bool) -> None:
        self.vocab, self.device, self.static = shape.vocab, device, static
        config = LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            attn_implementation=attention,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        with torch.device(device):
            torch.set_default_dtype(torch.bfloat16)
            model = LlamaForCausalLM(config)
            torch.set_default_dtype(torch.float32)
        self.model = model.eval()

    def seconds(self, batch: int, prompt: int, new_tokens: int) -> float:
        """Of one call of `generate`, greedy, to the full length."""
        ids = torch.randint(self.vocab, (batch, prompt), device=self.device)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=0,
            use_cache=True,
            cache_implementation="static" if self.static else None,
        )
        synchronize(self.device)
        start = time.perf_counter()
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        synchronize(self.device)
        seconds = time.perf_counter() - start
        assert out.shape == (batch, prompt + new_tokens), out.shape
        return seconds

    def decode(self, *, batch: int, prompt: int, steps: int) -> Result:
        """Seconds of `steps` decoding steps."""
        seconds = self.seconds(batch, prompt, 1 + steps) - self.seconds(batch, prompt, 1)
        return {"tokens": float(batch * steps), "seconds": seconds}

    def prefill(self, *, prompt: int) -> Result:
        """Seconds until the first token of one prompt."""
        return {"tokens": float(prompt), "seconds": self.seconds(1, prompt, 1)}


def open_worker(words: list[str]) -> tuple[dict[str, Case], dict[str, object]]:
    """Make the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(words)
    device = resolve_device(args.device)
    about: dict[str, object] = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "device": device_name(device),
        "configuration": f"LlamaForCausalLM, bfloat16, {args.attention}, greedy, "
        + ("static cache, compiled by transformers where it does so" if args.static else "dynamic cache"),
    }
    if args.attention.startswith("flash") and importlib.util.find_spec("flash_attn") is None:
        return {}, {**about, "unfit": "flash-attn is not installed"}
    logging.getLogger("transformers").setLevel(logging.ERROR)
    peer = Peer(SHAPES[args.shape], device, args.attention, static=args.static)
    return {"decode": peer.decode, "prefill": peer.prefill}, about


if __name__ == "__main__":
    sys.exit(serve(lambda: open_worker(sys.argv[1:])))
