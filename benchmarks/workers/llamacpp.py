"""Worker: llama.cpp through llama-cpp-python's C interface, on random weights.

Runs in the peers' environment:

python -m benchmarks.workers.llamacpp --shape M --format int4 --threads 2 --models FOLDER
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

from benchmarks.peers.gguf_model import model_path, write_model
from benchmarks.shapes import GGUF_TYPES, SHAPES, Shape
from benchmarks.workers.loop import Case, Result, serve

MAX_BATCH = 8
CONTEXT = 1024  # tokens of one sequence


@llama_cpp.llama_log_callback
def only_errors(level: int, text: bytes, _user_data: object) -> None:
    """llama.cpp's log: what it says of every graph is left out."""
    if level == 4:
        print(text.decode("utf-8", "replace"), end="", file=sys.stderr)


class Llama:
    """A model, and a context for each number of sequences: one made for eight is slower with one."""

    def __init__(self, path: Path, shape: Shape, threads: int) -> None:
        self.shape = shape
        model_params = llama_cpp.llama_model_default_params()
        model_params.use_mmap = False  # weights in memory of its own, where huge pages are possible
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot open {path}")
        self.contexts = {count: self._new_context(count, threads) for count in (1, MAX_BATCH)}
        self.context = self.contexts[1]
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def _new_context(self, num_sequences: int, threads: int) -> object:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_sequences * CONTEXT
        params.n_seq_max = num_sequences
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        context = llama_cpp.llama_init_from_model(self.model, params)
        if not context:
            raise RuntimeError(f"llama.cpp cannot make a context for {num_sequences} sequences")
        return context

    def start(self, num_sequences: int) -> None:
        """Take the context for so many sequences (1 or 8), emptied."""
        self.context = self.contexts[num_sequences]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def run(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Feed (sequence, position, token, wants logits); the likeliest next token of rows that want it."""
        self.batch.n_tokens = len(rows)
        for row, (sequence, position, token, wants_logits) in enumerate(rows):
            self.batch.token[row] = token
            self.batch.pos[row] = position
            self.batch.n_seq_id[row] = 1
            self.batch.seq_id[row][0] = sequence
            self.batch.logits[row] = int(wants_logits)
        status = llama_cpp.llama_decode(self.context, self.batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return [self._best(row) for row, (*_, wants_logits) in enumerate(rows) if wants_logits]

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        array = np.ctypeslib.as_array(
            ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), shape=(self.shape.vocab,)
        )
        return int(array.argmax())

    def prompt(self, sequence: int, num_tokens: int) -> int:
        """Feed a random prompt; the first token of its answer."""
        ids = random.choices(range(self.shape.vocab), k=num_tokens)
        rows = [(sequence, place, token, place == num_tokens - 1) for place, token in enumerate(ids)]
        return self.run(rows)[0]


def decode(llama: Llama, *, batch: int, prompt: int, steps: int) -> Result:
    """Seconds of `steps` decoding steps of `batch` sequences, their prompts not counted."""
    llama.start(batch)
    tokens = [llama.prompt(sequence, prompt) for sequence in range(batch)]
    start = time.perf_counter()
    for step in range(steps):
        tokens = llama.run([(sequence, prompt + step, token, True) for sequence, token in enumerate(tokens)])
    return {"tokens": float(batch * steps), "seconds": time.perf_counter() - start}


def prefill(llama: Llama, *, prompt: int) -> Result:
    """Seconds until the first token of one prompt of up to 512 tokens."""
    llama.start(1)
    start = time.perf_counter()
    llama.prompt(0, prompt)
    return {"tokens": float(prompt), "seconds": time.perf_counter() - start}


def amx_obstacle(system_info: str) -> str | None:
    """Why this build does not count on this machine, or None."""
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii") if Path("/proc/cpuinfo").exists() else ""
    if "amx_int8" in flags and "AMX_INT8 = 1" not in system_info:
        return "llama.cpp was built without AMX on a machine that has it; such a peer does not count"
    return None


def open_worker(words: Sequence[str]) -> tuple[dict[str, Case], dict[str, object]]:
    """Write the model if need be, load it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--format", choices=GGUF_TYPES, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--models", type=Path, required=True)
    args = parser.parse_args(words)
    shape = SHAPES[args.shape]
    path = model_path(args.models, shape, args.format)
    if not path.exists():
        write_model(path, shape, args.format)
    llama_cpp.llama_log_set(only_errors, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    system_info = llama_cpp.llama_print_system_info().decode()
    about = {
        "llama_cpp_python": llama_cpp.__version__,
        "system_info": system_info,
        "format": GGUF_TYPES[args.format],
        "unfit": amx_obstacle(system_info),
    }
    llama = Llama(path, shape, args.threads)
    cases: dict[str, Case] = {
        "decode": lambda **arguments: decode(llama, **arguments),
        "prefill": lambda **arguments: prefill(llama, **arguments),
    }
    return cases, about


if __name__ == "__main__":
    sys.exit(serve(lambda: open_worker(sys.argv[1:])))
