"""`make bench-load`: how long a whole 7B at int4 takes to load, and how much memory it needs with 4K tokens.

    python -m benchmarks.load_7b --folder /tmp

Writes a folder of random weights in the shape of TeleChat-7B, quantised by us, reads it once with an empty
page cache at the best rate the disk gives, empties the cache again, and loads it in a fresh process, which
then fills its whole context and answers. The folder (5.4 GB) is deleted afterwards. A figure never fails the
run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.harness import say

MODULE = "benchmarks.load_7b"
SECONDS = 60.0
MEMORY_LIMIT = 8 << 30
CONTEXT = 4096
NUM_ANSWER_TOKENS = 16
_READ_AT_ONCE = 16 << 20


def make_folder(folder: Path, preset_name: str, bits: int, group_size: int) -> None:
    """A random model of a published size, quantised, with the demo model's tokenizer."""
    import torch

    from telechat.checkpoint import resolve_model
    from telechat.checkpoint.quantized import stored_tensors
    from telechat.checkpoint.save import folder_config, parameter_bytes, write_folder
    from telechat.models import parameter_table, preset
    from telechat.models.quantized import is_quantisable, untied
    from telechat.ops.quantized import QuantizedWeight, WeightScheme

    config = untied(preset(preset_name))
    scheme = WeightScheme(bits, group_size)
    table = {parameter.name: parameter for parameter in parameter_table(config)}
    generator = torch.Generator().manual_seed(0)
    # Random numbers by the gigabyte take minutes: some millions, repeated.
    some_bytes = torch.randint(256, (2**24 + 1,), generator=generator, dtype=torch.uint8)
    some_values = (torch.randn(2**22 + 1, generator=generator) * 0.02).bfloat16()
    # Integers spread evenly over their range; with this scale weights deviate by 0.02.
    scale = 0.02 * 12**0.5 / 2**bits

    def repeat(some: torch.Tensor, out: torch.Tensor) -> None:
        flat = out.view(some.dtype).view(-1)
        for start in range(0, len(flat), len(some)):
            flat[start : start + len(some)] = some[: len(flat) - start]

    def content(names: list[str]) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            parameter = table[name]
            if is_quantisable(parameter):
                rows, columns = parameter.shape
                weight = QuantizedWeight.allocate(rows, columns, scheme)
                repeat(some_bytes, weight.qweight)
                weight.scales.fill_(scale)
                tensors.update(stored_tensors(name, weight))
            elif parameter.kind == "norm":
                tensors[name] = torch.ones(parameter.shape, dtype=torch.bfloat16)
            elif parameter.kind == "bias":
                tensors[name] = torch.zeros(parameter.shape, dtype=torch.bfloat16)
            else:
                tensors[name] = torch.empty(parameter.shape, dtype=torch.bfloat16)
                repeat(some_values, tensors[name])
        return tensors

    sizes = parameter_bytes(config, torch.bfloat16, scheme)
    raw = folder_config(config, torch.bfloat16, scheme)
    write_folder(folder, raw, sizes, content, max_shard_bytes=1_000_000_000)
    demo = resolve_model("demo")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(demo / name, folder / name)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder."""
    return sorted(folder.glob("*.safetensors"))


def empty_page_cache(paths: Sequence[Path]) -> None:
    """Have the system forget what it holds of these files; how far it did is seen by what is read later."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_rate(paths: Sequence[Path]) -> float:
    """GB/s of reading these files, four parts of a file at a time."""

    def read(path: Path, start: int, stop: int) -> None:
        buffer = bytearray(_READ_AT_ONCE)
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < stop:
                start += file.readinto(buffer) or stop

    begin = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        for path in paths:
            size = path.stat().st_size
            bounds = [size * part // 4 for part in range(5)]
            list(pool.map(read, [path] * 4, bounds, bounds[1:]))
    total = sum(path.stat().st_size for path in paths)
    return total / (time.perf_counter() - begin) / 1e9


def bytes_from_disk() -> int:
    """What this process has had read from the disk itself, page cache not counted."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def peak_resident_bytes() -> int:
    """The most memory this process has held."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def load_and_answer(folder: Path, kv_cache_dtype: str, born: float) -> dict[str, Any]:
    """In the fresh process: load, fill the context, answer; what it took."""
    from telechat import LLM, SamplingParams

    imported = time.time() - born
    disk = bytes_from_disk()
    begin = time.perf_counter()
    llm = LLM(
        folder,
        device="cpu",
        max_model_len=CONTEXT,
        max_batch_size=1,
        memory_limit=MEMORY_LIMIT,
        kv_cache_dtype=kv_cache_dtype,  # type: ignore[arg-type]
    )
    seconds = time.perf_counter() - begin
    result: dict[str, Any] = {
        "seconds_to_start_and_import": round(imported, 2),
        "seconds_to_load": round(seconds, 2),
        "seconds_from_start_of_process": round(time.time() - born, 2),
        "gb_from_disk_while_loading": round((bytes_from_disk() - disk) / 1e9, 3),
        "peak_gib_after_loading": round(peak_resident_bytes() / 2**30, 3),
        "executor": llm.executor.describe(),
        "cache": vars(llm.cache_plan) if hasattr(llm.cache_plan, "__dict__") else str(llm.cache_plan),
    }
    prompt = [4 + number % 4000 for number in range(CONTEXT - NUM_ANSWER_TOKENS)]
    begin = time.perf_counter()
    first = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    llm.generate([prompt], first)
    result["prefill_tokens_per_second"] = round(len(prompt) / (time.perf_counter() - begin), 1)
    begin = time.perf_counter()
    answer = SamplingParams(max_tokens=NUM_ANSWER_TOKENS, temperature=0.0, ignore_eos=True)
    output = llm.generate([prompt], answer)[0]
    result["seconds_of_answer_after_cached_prompt"] = round(time.perf_counter() - begin, 2)
    result["context_tokens_used"] = len(prompt) + len(output.outputs[0].token_ids)
    result["peak_gib"] = round(peak_resident_bytes() / 2**30, 3)
    return result


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Make the folder, read it, load it; figures."""
    with tempfile.TemporaryDirectory(prefix="telechat-load-", dir=args.folder) as parent:
        folder = Path(parent) / "model"
        begin = time.perf_counter()
        make_folder(folder, args.preset, args.bits, args.group_size)
        say(f"made in {time.perf_counter() - begin:.0f} s")
        files = weight_files(folder)
        size = sum(path.stat().st_size for path in files)
        empty_page_cache(files)
        rate = read_rate(files)
        empty_page_cache(files)
        words = [sys.executable, "-m", MODULE, "--load", str(folder), "--kv-cache-dtype", args.kv_cache_dtype]
        environment = {**os.environ, "LOAD_BORN": repr(time.time())}
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
    loaded_rate = size / figures["seconds_to_load"] / 1e9
    return {
        "preset": args.preset,
        "bits": args.bits,
        "group_size": args.group_size,
        "kv_cache_dtype": args.kv_cache_dtype,
        "gb_on_disk": round(size / 1e9, 3),
        "disk_gb_per_second": round(rate, 3),
        "loaded_gb_per_second": round(loaded_rate, 3),
        "share_of_disk_rate": round(loaded_rate / rate, 3),
        "was_cold": figures["gb_from_disk_while_loading"] > 0.9 * size / 1e9,
        **figures,
        "goal": {"seconds_to_load": SECONDS, "peak_gib": MEMORY_LIMIT / 2**30},
        "reached": figures["seconds_to_load"] < SECONDS and figures["peak_gib"] <= MEMORY_LIMIT / 2**30,
    }


def main(words: Sequence[str]) -> int:
    """Measure, print, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the model is made (default: $TMPDIR)"
    )
    parser.add_argument("--preset", default="telechat-7b")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--group-size", type=int, choices=(32, 64, 128), default=32)
    parser.add_argument("--kv-cache-dtype", choices=("auto", "int8", "int4"), default="auto")
    parser.add_argument("--no-report", action="store_true", help="print the figures only")
    parser.add_argument("--load", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.load is not None:
        born = float(os.environ["LOAD_BORN"])
        print(json.dumps(load_and_answer(args.load, args.kv_cache_dtype, born), default=str))
        return 0
    report = record.record(MODULE, words)
    report["figures"] = measure(args)
    print(json.dumps(report["figures"], indent=2))
    if not args.no_report:
        record.write("load-7b", report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
