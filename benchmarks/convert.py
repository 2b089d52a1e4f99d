"""`make bench-convert`: how fast a checkpoint is converted beside a plain copy, and with how much memory.

    python -m benchmarks.convert --sizes 1 3 6 --folder /tmp

For each size (GB) a model in bf16 is written; then, round after round, its folder is copied with `cp -r` and
converted into every target, each by a command in a process of its own. Before every run the source is read
once, so that all find it in the page cache alike, and a run ends when the disk has everything (`sync`). The
best of the rounds counts, of the copy as of a conversion. Throughput is bytes written by the second; the
share compares it with the copy's. It is given for the whole command, and without its start: the seconds in
which the same command converts the demo model, which has 5 MB. A figure never fails the run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import record
from benchmarks.harness import say

MODULE = "benchmarks.convert"
DEMO = record.ROOT / "src" / "telechat" / "demo_model"
START = "start of the command"
SHARE, SMALL_PEAK, PEAK = 0.7, 200e6, 1e9
VOCABULARY, HIDDEN, INNER = 32768, 2048, 8192
LARGEST_TENSOR = 2 * VOCABULARY * HIDDEN
_READ_AT_ONCE = 8 << 20


@dataclass(frozen=True)
class Case:
    """A conversion.

    Attributes:
        source: `hf`, or `ms` for the MindSpore file that an earlier case has made.
        words: options of the command.
        keeps_dtype: whether the share of the copy's throughput has a goal.
    """

    name: str
    source: str
    words: tuple[str, ...]
    keeps_dtype: bool = True


CASES = (
    Case("hf -> hf", "hf", ("--to", "hf")),
    Case("hf -> llama", "hf", ("--to", "llama")),
    Case("hf -> gguf", "hf", ("--to", "gguf")),
    Case("hf -> mindspore", "hf", ("--to", "mindspore")),
    Case("hf -> mindspore qkv_concat", "hf", ("--to", "mindspore", "--qkv-concat")),
    Case("hf -> mindspore mp4", "hf", ("--to", "mindspore", "--layout", "mp4")),
    Case("mindspore -> hf", "ms", ("--to", "hf")),
    Case("mindspore -> mindspore mp4", "ms", ("--to", "mindspore", "--layout", "mp4")),
    Case("hf -> hf fp32", "hf", ("--to", "hf", "--dtype", "float32"), keeps_dtype=False),
    Case("hf -> gguf Q8_0", "hf", ("--to", "gguf", "--gguf-type", "Q8_0"), keeps_dtype=False),
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The best of several runs of a case.

    Attributes:
        gigabytes: of the model.
        seconds: the best run's; of all runs in `all_seconds`.
        share_of_whole_command: throughput beside the copy's.
        share_of_cp: the same without the start of the command.
        peak_bytes: the largest resident memory of any run.
    """

    case: str
    gigabytes: float
    seconds: float
    all_seconds: tuple[float, ...]
    written_bytes: int
    share_of_whole_command: float
    share_of_cp: float
    peak_bytes: int


def make(folder: Path, gigabytes: float) -> None:
    """A bf16 model of about that size: more layers, not larger ones. Its numbers are zeros, written out."""
    import torch

    from telechat.checkpoint.formats.convert import convert
    from telechat.checkpoint.formats.lazy import zeros
    from telechat.checkpoint.formats.table import Checkpoint
    from telechat.models import TeleChatConfig, parameter_table

    layer_bytes = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
    config = TeleChatConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_layers=max(1, round((gigabytes * 1e9 - 2 * LARGEST_TENSOR) / layer_bytes)),
        num_heads=16,
        num_kv_heads=16,
        ffn_hidden_size=INNER,
    )
    tensors = {p.name: zeros(p.shape, torch.bfloat16) for p in parameter_table(config)}
    convert(Checkpoint(config=config, tensors=tensors, folder=DEMO, format="zeros"), folder, "hf")


def size_of(path: Path) -> int:
    """Bytes of all files below a path."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def read_all(path: Path) -> None:
    """Bring a folder into the page cache, as far as it has room."""
    for file in path.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as content:
                while content.read(_READ_AT_ONCE):
                    pass


def timed(command: Sequence[str]) -> tuple[float, int]:
    """(seconds until all is on the disk, peak bytes of resident memory) of a command."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    os.sync()
    return time.monotonic() - started, usage.ru_maxrss * 1024


class Runs:
    """Runs of commands that make `out` from a source, and what they took."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, list[float]] = {}
        self.peaks: dict[str, int] = {}
        self.written: dict[str, int] = {}

    def run(self, name: str, source: Path, command: Sequence[str]) -> None:
        """One run of a command that makes `out`, which is removed."""
        read_all(source)
        seconds, peak = timed(command)
        self.seconds.setdefault(name, []).append(seconds)
        self.peaks[name] = max(peak, self.peaks.get(name, 0))
        self.written[name] = size_of(self.folder / "out")
        shutil.rmtree(self.folder / "out")

    def throughput(self, name: str, start: float = 0.0) -> float:
        """Bytes by the second of the best run, `start` seconds left out."""
        return self.written[name] / max(min(self.seconds[name]) - start, 1e-9)


def measure(folder: Path, gigabytes: float, rounds: int, cases: Sequence[Case]) -> list[Result]:
    """Every case at one size."""
    places = {"hf": folder / "hf", "ms": folder / "ms"}
    # In a process of its own: a parent with torch in it would show in its children's peak memory.
    code = (
        f"from pathlib import Path; from {MODULE} import make; make(Path({str(places['hf'])!r}), {gigabytes})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    convert = [sys.executable, "-m", "telechat", "checkpoint", "convert"]
    sources = dict.fromkeys(case.source for case in cases)
    if "ms" in sources:
        words = [*convert, str(places["hf"]), str(places["ms"]), "--to", "mindspore"]
        subprocess.run(words, check=True, capture_output=True)
    num_bytes = size_of(places["hf"])
    runs = Runs(folder)
    demo = str(DEMO)
    for _ in range(rounds):
        runs.run(START, Path(demo), [*convert, demo, str(folder / "out"), "--to", "hf"])
        for source in sources:
            place, out = str(places[source]), str(folder / "out")
            runs.run(f"cp {source}", places[source], ["cp", "-r", place, out])
            for case in cases:
                if case.source == source:
                    runs.run(case.name, places[source], [*convert, place, out, *case.words])
    start = min(runs.seconds[START])
    results = [
        Result(
            case=case.name,
            gigabytes=num_bytes / 1e9,
            seconds=min(runs.seconds[case.name]),
            all_seconds=tuple(runs.seconds[case.name]),
            written_bytes=runs.written[case.name],
            share_of_whole_command=runs.throughput(case.name) / runs.throughput(f"cp {case.source}"),
            share_of_cp=runs.throughput(case.name, start) / runs.throughput(f"cp {case.source}"),
            peak_bytes=runs.peaks[case.name],
        )
        for case in cases
    ]
    say(f"{num_bytes / 1e9:5.2f} GB  {START:<28} {start:7.2f} s")
    for source in sources:
        rate = runs.throughput(f"cp {source}")
        say(f"{num_bytes / 1e9:5.2f} GB  {f'cp {source}':<28} {rate / 1e6:7.0f} MB/s")
        shutil.rmtree(places[source])
    for result in results:
        rate = result.written_bytes / result.seconds
        say(
            f"{result.gigabytes:5.2f} GB  {result.case:<28} {rate / 1e6:7.0f} MB/s  "
            f"{result.share_of_cp:5.2f} of cp ({result.share_of_whole_command:.2f} with its start)  "
            f"peak {result.peak_bytes / 1e6:5.0f} MB"
        )
    return results


def verdicts(results: Sequence[Result]) -> dict[str, str]:
    """Each goal with what was found."""
    with_goal = {case.name for case in CASES if case.keeps_dtype}
    shares = [result for result in results if result.case in with_goal]
    found: dict[str, str] = {}
    for name, share_of in (("", "share_of_cp"), (", start included", "share_of_whole_command")):
        values = {f"{result.case}, {result.gigabytes:.1f} GB": getattr(result, share_of) for result in shares}
        if values:
            least = min(values, key=lambda key: values[key])
            found[f"throughput >= {SHARE} of cp{name}"] = (
                f"{'holds' if values[least] >= SHARE else 'fails'}: least {values[least]:.2f} ({least})"
            )
    most = max(results, key=lambda result: result.peak_bytes)
    limit = 2 * LARGEST_TENSOR + SMALL_PEAK
    for name, allowed in ((f"peak <= 2 x largest tensor + 200 MB = {limit / 1e6:.0f} MB", limit),
                          ("peak <= 1 GB", PEAK)):  # fmt: skip
        found[name] = (
            f"{'holds' if most.peak_bytes <= allowed else 'fails'}: most {most.peak_bytes / 1e6:.0f} MB "
            f"({most.case}, {most.gigabytes:.1f} GB)"
        )
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1.0, 3.0, 6.0], help="GB (default: 1 3 6)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the best counts (default: 3)")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the temporary folder)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases with this in their name")
    parser.add_argument("--no-report", action="store_true", help="write no file to benchmarks/results")
    words = sys.argv[1:] if words is None else list(words)
    args = parser.parse_args(words)
    cases = [case for case in CASES if args.only in case.name]
    if not cases:
        known = ", ".join(case.name for case in CASES)
        parser.error(f"no case has {args.only!r} in its name; there are {known}")
    if args.rounds < 1 or min(args.sizes) <= 0:
        parser.error("--rounds must be at least 1 and --sizes above 0")
    report = record.record(MODULE, words)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="telechat-convert-") as name:
        for gigabytes in args.sizes:
            results += measure(Path(name), gigabytes, args.rounds, cases)
    found = verdicts(results)
    for goal, verdict in found.items():
        say(f"{goal}: {verdict}")
    if not args.no_report:
        rows = [asdict(result) for result in results]
        record.write("convert", {**report, "rows": rows, "verdicts": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
