"""Worker: our engine on random weights of a shape, or on the demo model.

    python -m benchmarks.workers.telechat --shape M --format int4 --threads 2

Everything is measured through the engine as users have it: scheduling, sampling and text included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.arrivals import Arrival
from benchmarks.shapes import SHAPES, Shape
from benchmarks.workers import folders
from benchmarks.workers.loop import Case, Result, serve
from benchmarks.workers.stopwatch import watching
from telechat import LLM, SamplingParams
from telechat.checkpoint import save_model
from telechat.checkpoint.hub import demo_folder
from telechat.device import CPU
from telechat.engine import AsyncEngine
from telechat.engine.request import Request
from telechat.engine.sampler import Sampler
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, TeleChatModel, build_model
from telechat.ops.cpu import library
from telechat.tokenizer import load_tokenizer
from telechat.tokenizer.load import copy_tokenizer_files

MAX_MODEL_LEN = 2304
BLOCK_SIZE = 32
CACHE_TOKENS = 10240
MAX_BATCH = 64
# Formats that a plain folder is rounded to while it is loaded.
_WHILE_LOADING = ("int4", "int8")


def random_model(shape: Shape, num_words: int, device: torch.device = CPU) -> TeleChatModel:
    """bf16, in eval mode. Rows repeat: time does not depend on values.

    Args:
        num_words: vocabulary of the tokenizer. The head's rows beyond it are zero, so that the likeliest
            token is always one that has a text.
    """
    config = TeleChatConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_heads,
        ffn_hidden_size=shape.ffn,
        seq_length=4096,
        rope=RopeSettings(base_length=4096, training_length=4096),
    )
    model = build_model(
        config, device="meta", target=device, dtype=torch.bfloat16, rope_mode="static", static_length=4096
    ).to_empty(device=device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                few = torch.randn(16, parameter.shape[1], generator=generator) * 0.02
                rows = few.to(device, torch.bfloat16).repeat(-(-parameter.shape[0] // 16), 1)
                parameter.copy_(rows[: parameter.shape[0]])
            else:
                parameter.fill_(0 if name.endswith("bias") else 1)
        model.output_weight[num_words:] = 0
    return model.eval().requires_grad_(False)


def model_folder(models: Path, shape: Shape, stored_as: str | None = None) -> Path:
    """A folder of random weights with the demo model's tokenizer, written when first asked for.

    Args:
        stored_as: one of `folders.FORMATS`; plain bf16 if None.
    """
    folder = models / f"{shape.name}-{stored_as or 'telechat'}"
    if not folder.exists():
        unfinished = models / f".{shape.name}-{os.getpid()}"
        tokenizer = load_tokenizer(demo_folder())
        model = random_model(shape, tokenizer.vocab_size)
        if stored_as is None:
            save_model(model, unfinished)
        else:
            folders.write_folder(unfinished, model, stored_as)
        copy_tokenizer_files(tokenizer, unfinished)
        unfinished.rename(folder)
    return folder


def to_the_end(new_tokens: int, *, is_random: bool = False) -> SamplingParams:
    """Greedy, or drawn from a truncated distribution as chats usually are; always to the full length."""
    if is_random:
        return SamplingParams(
            temperature=0.7,
            top_k=50,
            top_p=0.9,
            repetition_penalty=1.05,
            max_tokens=new_tokens,
            ignore_eos=True,
        )
    return SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)


class Ours:
    """An LLM whose engine is stepped by hand, called as a whole, or driven through the service's front."""

    def __init__(self, llm: LLM, num_words: int) -> None:
        self.llm = llm
        self.num_words = num_words
        self.engine = llm.engine

    def prompt(self, num_tokens: int) -> list[int]:
        """Random ids of words: no prompt shares a prefix with another."""
        return random.choices(range(16, self.num_words), k=num_tokens)

    def request(
        self, prompt: Sequence[int], new_tokens: int, tenant: str = "", is_random: bool = False
    ) -> Request:
        """One that runs to its full length."""
        params = to_the_end(new_tokens, is_random=is_random)
        [request] = self.llm.intake.make_requests(list(prompt), params, tenant=tenant)
        return request

    def run_until(self, is_done: Callable[[], bool]) -> float:
        """Step until then; returns seconds."""
        start = time.perf_counter()
        while not is_done():
            for request in self.engine.step():
                if request.error:
                    raise request.error
        return time.perf_counter() - start

    def start(self, batch: int, prompt: int, new_tokens: int, *, is_random: bool = False) -> list[Request]:
        """Requests that all have their first token."""
        requests = [self.request(self.prompt(prompt), new_tokens, is_random=is_random) for _ in range(batch)]
        for request in requests:
            self.engine.add(request)
        self.run_until(lambda: all(request.token_ids for request in requests))
        return requests

    def decode(self, *, batch: int, prompt: int, steps: int) -> Result:
        """Seconds of `steps` steps in which every sequence gains a token."""
        # Prompts may be taken in one after another: the first must not end before the last has begun.
        requests = self.start(batch, prompt, 2 * steps + 16 * batch)
        before = sum(len(request.token_ids) for request in requests)
        start = time.perf_counter()
        for _ in range(steps):
            self.engine.step()
        seconds = time.perf_counter() - start
        made = sum(len(request.token_ids) for request in requests) - before
        for request in requests:
            self.engine.cancel(request)
        assert made == batch * steps, f"{made} tokens in {steps} steps of {batch}"
        return {"tokens": float(made), "seconds": seconds}

    def prefill(self, *, prompt: int) -> Result:
        """Seconds until the first token of one prompt."""
        return {"tokens": float(prompt), "seconds": self.first_token(self.prompt(prompt))}

    def first_token(self, prompt: Sequence[int], tenant: str = "") -> float:
        """Seconds from adding a request to its first token; other requests go on in between."""
        request = self.request(prompt, 1, tenant)
        self.engine.add(request)
        return self.run_until(lambda: bool(request.token_ids))

    def prefix(self, *, shared: int, own: int) -> Result:
        """First tokens of two prompts that begin alike."""
        system = self.prompt(shared)
        first = self.first_token([*system, *self.prompt(own)])
        second = self.first_token([*system, *self.prompt(own)])
        return {"first": first, "second": second, "second_to_first": second / first, "seconds": first}

    def fairness(self, *, flood: int, prompt: int, new_tokens: int) -> Result:
        """A request's first token while another tenant's flood is worked on, beside its first token alone."""
        alone = self.first_token(self.prompt(prompt), tenant="guest")
        others = [self.request(self.prompt(prompt), new_tokens, tenant="flood") for _ in range(flood)]
        for request in others:
            self.engine.add(request)
        for _ in range(8):
            start = time.perf_counter()
            self.engine.step()
            step = time.perf_counter() - start
        # It arrives in the middle of a step as a rule, and waits for the other half.
        crowded = step / 2 + self.first_token(self.prompt(prompt), tenant="guest")
        for request in others:
            self.engine.cancel(request)
        return {"alone": alone, "crowded": crowded, "delay": crowded / alone, "seconds": crowded}

    def generate(self, *, batch: int, prompt: int, new_tokens: int) -> Result:
        """Seconds of one whole call of `LLM.generate`."""
        prompts = [self.prompt(prompt) for _ in range(batch)]
        start = time.perf_counter()
        outputs = self.llm.generate(prompts, to_the_end(new_tokens))
        seconds = time.perf_counter() - start
        made = sum(len(output.outputs[0].token_ids) for output in outputs)
        assert made == batch * new_tokens, f"{made} tokens instead of {batch * new_tokens}"
        return {"tokens": float(made), "seconds": seconds}

    def concurrent(self, *, batch: int, prompt: int, new_tokens: int) -> Result:
        """As `arrivals`, all at once."""
        return self.arrivals(arrivals=[(0.0, prompt, new_tokens)] * batch)

    def arrivals(self, *, arrivals: Sequence[Sequence[float]]) -> Result:
        """Seconds until the last request is done, through the service's engine."""
        listed = [Arrival.of(entry) for entry in arrivals]

        async def one(engine: AsyncEngine, arrival: Arrival) -> int:
            await asyncio.sleep(arrival.second)
            made = 0
            async for delta in engine.stream(self.prompt(arrival.prompt), to_the_end(arrival.new_tokens)):
                made += len(delta.token_ids)
            return made

        async def together() -> tuple[int, float]:
            engine = AsyncEngine(self.llm)
            try:
                start = time.perf_counter()
                made = await asyncio.gather(*(one(engine, arrival) for arrival in listed))
                return sum(made), time.perf_counter() - start
            finally:
                engine.close()

        made, seconds = asyncio.run(together())
        assert made == sum(arrival.new_tokens for arrival in listed), made
        return {"tokens": float(made), "seconds": seconds}

    def overhead(self, *, batch: int, steps: int, is_random: bool) -> Result:
        """Shares of decoding steps spent scheduling and sampling, and spent outside the model's forward."""
        requests = self.start(batch, 32, 2 * steps + 16 * batch, is_random=is_random)
        decisions = ((self.engine.scheduler, "schedule"), (Sampler, "__init__"), (Sampler, "sample"))
        with (
            watching(*decisions) as deciding,
            watching((self.engine.executor, "forward")) as computing,
        ):
            start = time.perf_counter()
            for _ in range(steps):
                self.engine.step()
            seconds = time.perf_counter() - start
        for request in requests:
            self.engine.cancel(request)
        return {
            "share": deciding.seconds / seconds,
            "share_outside_model": 1 - computing.seconds / seconds,
            "step_ms": 1000 * seconds / steps,
            "tokens": float(batch * steps),
            "seconds": seconds,
        }


def open_worker(words: Sequence[str]) -> tuple[dict[str, Case], dict[str, object]]:
    """Make the model and the engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="M")
    parser.add_argument("--format", choices=(*_WHILE_LOADING, "bf16", *folders.FORMATS), default="bf16")
    parser.add_argument("--demo", action="store_true", help="the demo model, as it is")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "int8", "int4"), default="auto")
    parser.add_argument("--cache-tokens", type=int, default=CACHE_TOKENS)
    parser.add_argument("--models", type=Path, required=True, help="folder where random models are kept")
    parser.add_argument("--without-kernels", action="store_true", help="compiled kernels must not be found")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    obstacle = library.obstacle()
    about: dict[str, object] = {"kernels": obstacle or "compiled", "torch": torch.__version__}
    if args.without_kernels != bool(obstacle):
        return {}, {**about, "unfit": f"kernels: {obstacle or 'there, but are to be absent'}"}
    if args.demo:
        llm = LLM("demo", kv_cache_dtype=args.kv_cache_dtype)
    else:
        llm = LLM(
            model_folder(
                args.models, SHAPES[args.shape], args.format if args.format in folders.FORMATS else None
            ),
            dtype="bfloat16",
            quantize=args.format if args.format in _WHILE_LOADING else None,
            group_size=32 if args.format in _WHILE_LOADING else None,
            max_model_len=MAX_MODEL_LEN,
            max_batch_size=MAX_BATCH,
            block_size=BLOCK_SIZE,
            num_blocks=args.cache_tokens // BLOCK_SIZE,
            kv_cache_dtype=args.kv_cache_dtype,
        )
    ours = Ours(llm, llm.tokenizer.vocab_size)
    names = ("decode", "prefill", "prefix", "fairness", "generate", "concurrent", "arrivals", "overhead")
    about["executor"] = llm.executor.describe()
    return {name: getattr(ours, name) for name in names}, about


if __name__ == "__main__":
    sys.exit(serve(lambda: open_worker(sys.argv[1:])))
