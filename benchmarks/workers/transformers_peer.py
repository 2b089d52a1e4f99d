"""Worker: transformers' Llama in bf16 on random weights: `generate`, and `generate_batch`, its continuous
batching.

python -m benchmarks.workers.transformers_peer --shape M --threads 2
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.continuous_batching import ContinuousBatchingManager

from benchmarks.arrivals import Arrival
from benchmarks.shapes import SHAPES, Shape
from benchmarks.workers.loop import Case, Result, serve

# Its defaults, except that it would take most of the memory for its cache.
DEFAULTS = ContinuousBatchingConfig(max_memory_percent=0.15)
# Faster: a cache as large as our engine's.
TUNED = ContinuousBatchingConfig(page_size=256, num_blocks=40, max_batch_tokens=512)


class Peer:
    """The model in bf16 with its fastest attention on a CPU."""

    def __init__(self, shape: Shape) -> None:
        self.vocab = shape.vocab
        config = LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        with torch.device("meta"):
            model = LlamaForCausalLM(config).to(torch.bfloat16)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:  # a few random rows, repeated: time does not depend on values
                    few = torch.randn(16, parameter.shape[1], dtype=torch.bfloat16) * 0.02
                    parameter.copy_(few.repeat(parameter.shape[0] // 16, 1))
                else:
                    parameter.fill_(1)
        rotary = model.model.rotary_emb
        fresh = type(rotary)(config)  # its buffers were on the meta device
        rotary.inv_freq, rotary.original_inv_freq = fresh.inv_freq, fresh.original_inv_freq
        self.model = model.eval()

    def prompt(self, num_tokens: int) -> list[int]:
        """Random token ids."""
        return [int(token) for token in torch.randint(0, self.vocab, (num_tokens,))]

    def settings(self, new_tokens: int) -> GenerationConfig:
        """Greedy, to the full length."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=None,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=True,
        )

    def generate(self, *, batch: int, prompt: int, new_tokens: int) -> Result:
        """Seconds of one whole call of `generate` for prompts of one length."""
        ids = torch.tensor([self.prompt(prompt) for _ in range(batch)])
        start = time.perf_counter()
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=self.settings(new_tokens)
        )
        seconds = time.perf_counter() - start
        assert out.shape == (batch, prompt + new_tokens), out.shape
        return {"tokens": float(batch * new_tokens), "seconds": seconds}

    def concurrent(self, *, batch: int, prompt: int, new_tokens: int) -> Result:
        """Seconds of one whole call of `generate_batch` with its defaults."""
        prompts = [self.prompt(prompt) for _ in range(batch)]
        start = time.perf_counter()
        outputs = self.model.generate_batch(
            prompts,
            generation_config=self.settings(new_tokens),
            continuous_batching_config=DEFAULTS,
            warmup=False,
        )
        seconds = time.perf_counter() - start
        made = [len(output.generated_tokens) for output in outputs.values()]
        assert made == [new_tokens] * batch, made
        return {"tokens": float(sum(made)), "seconds": seconds}

    def concurrent_tuned(self, *, batch: int, prompt: int, new_tokens: int) -> Result:
        """The same, tuned, and in a manager that runs already: without the call's start and end."""
        prompts = [self.prompt(prompt) for _ in range(batch)]
        with self.model.continuous_batching_context_manager(
            generation_config=self.settings(new_tokens), continuous_batching_config=TUNED, warmup=False
        ) as manager:
            manager.add_requests([prompts[0][:2]], max_new_tokens=1)
            self._finished(manager, 1)
            start = time.perf_counter()
            manager.add_requests(prompts, max_new_tokens=new_tokens)
            made = self._finished(manager, batch)
            seconds = time.perf_counter() - start
        assert made == [new_tokens] * batch, made
        return {"tokens": float(sum(made)), "seconds": seconds}

    def _finished(self, manager: ContinuousBatchingManager, count: int) -> list[int]:
        """Wait for that many requests; the number of tokens of each."""
        made: list[int] = []
        while len(made) < count:
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                made.append(len(result.generated_tokens))
            elif result is None and not manager.is_running():
                raise RuntimeError("generate_batch ended early")
        return made

    def arrivals(self, *, arrivals: Sequence[Sequence[float]]) -> Result:
        """Seconds until the last of the requests is done, each by `generate` after the one before it."""
        listed = [Arrival.of(entry) for entry in arrivals]
        start = time.perf_counter()
        for arrival in listed:
            wait = start + arrival.second - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            self.generate(batch=1, prompt=arrival.prompt, new_tokens=arrival.new_tokens)
        seconds = time.perf_counter() - start
        return {"tokens": float(sum(arrival.new_tokens for arrival in listed)), "seconds": seconds}


def open_worker(words: Sequence[str]) -> tuple[dict[str, Case], dict[str, object]]:
    """Make the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    peer = Peer(SHAPES[args.shape])
    about = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "configuration": "LlamaForCausalLM, bfloat16, sdpa, greedy, dynamic cache; generate_batch with "
        f"{DEFAULTS}; tuned: {TUNED}",
    }
    cases: dict[str, Case] = {
        "generate": peer.generate,
        "concurrent": peer.concurrent,
        "concurrent_tuned": peer.concurrent_tuned,
        "arrivals": peer.arrivals,
    }
    return cases, about


if __name__ == "__main__":
    sys.exit(serve(lambda: open_worker(sys.argv[1:])))
