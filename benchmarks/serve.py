"""`make bench-serve`: the service under load, beside its engine alone and beside other servers.

    python -m benchmarks.serve                           200 streams for 5 minutes, then peers (25 minutes)
    python -m benchmarks.serve --seconds 30 --no-peers   a short look

The demo model, greedy, deterministic. Streams are compared with the same request made alone. Memory is that
of the server's processes. Prints a table, writes JSON to benchmarks/results. A figure never fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.harness import ROOT, say
from benchmarks.servers import free_port, serving
from benchmarks.soak import resident_mb
from benchmarks.streams import Answer, Client, load
from benchmarks.table import Outcome, Place, Row, lines

MODULE = "benchmarks.serve"
OURS, LLAMA, TRANSFORMERS = "telechat", "llama.cpp server", "transformers serve"
CONCURRENCIES = (1, 8)
MAX_TOKENS = 128
FIELDS: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS}
QUESTIONS = (
    "生抽与老抽的区别？",
    "你是谁？",
    "今天的日期是？",
    *(f"{first}+{second}等于几？" for first, second in zip(range(11, 91, 4), range(89, 9, -4), strict=True)),
    *(
        f"鸡兔同笼，头共{heads}个，脚共{heads * 2 + rabbits * 2}只，各几只？"
        for heads, rabbits in ((8, 3), (12, 5), (20, 7), (35, 12), (17, 9))
    ),
)


def demo_server(port: int, num_clients: int) -> AbstractContextManager[str]:
    """The service with room for so many answers at once."""
    options = ("--max-batch-size", str(num_clients), "--max-pending-requests", str(2 * num_clients))
    quiet = ("--log-level", "error", "--access-log", "none")
    words = ("serve", "demo", "--deterministic", "--port", str(port), *options, *quiet)
    return serving("telechat", *words, port=port, ready_path="/ready")


def children_mb() -> float:
    """Resident memory of the processes that this one has started, MB."""
    total = 0.0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            total += resident_mb(int(child))
    return total


@dataclass
class Watch:
    """What is seen during the load.

    Attributes:
        expected: by question, the text of the request made alone.
        memory: (second, MB).
        wrong: answers that failed or differ, at most ten of them.
    """

    expected: dict[int, str]
    memory: list[tuple[float, float]] = field(default_factory=list)
    num_wrong: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)

    def check(self, answer: Answer) -> None:
        """Compare a stream with the request made alone."""
        if not answer.error and answer.text == self.expected[answer.question]:
            return
        self.num_wrong += 1
        if len(self.wrong) < 10:
            self.wrong.append(
                {"question": QUESTIONS[answer.question], "text": answer.text, "error": answer.error}
            )

    def growth(self) -> float:
        """How much more memory the last fifth took than the first, as a share."""
        fifth = max(1, len(self.memory) // 5)
        first, last = (
            statistics.median(mb for _, mb in part) for part in (self.memory[:fifth], self.memory[-fifth:])
        )
        return last / first - 1


def give_way() -> None:
    """Clients are on other machines; here, where they share the service's cores, this thread comes last."""
    os.setpriority(os.PRIO_PROCESS, 0, 10)


async def run_load(url: str, *, num_clients: int, seconds: float, warmup: float) -> dict[str, Any]:
    """Each question alone; then all clients, first to warm up."""
    alone = Client(url, FIELDS)
    expected = {}
    for number, question in enumerate(QUESTIONS):
        answer = await alone.ask(number, question)
        if answer.error:
            raise RuntimeError(f"{question}: {answer.error}")
        expected[number] = answer.text
    alone.close()
    watch = Watch(expected)
    await load(url, QUESTIONS, FIELDS, num_clients=num_clients, seconds=warmup, on_answer=watch.check)
    start = time.perf_counter()

    async def sample() -> None:
        while True:
            watch.memory.append((time.perf_counter() - start, children_mb()))
            await asyncio.sleep(max(0.2, seconds / 100))

    sampling = asyncio.create_task(sample())
    answers, lasted = await load(
        url, QUESTIONS, FIELDS, num_clients=num_clients, seconds=seconds, on_answer=watch.check
    )
    sampling.cancel()
    firsts = sorted(answer.first_seconds for answer in answers if not answer.error)
    return {
        "answers": len(answers),
        "tokens": sum(answer.num_tokens for answer in answers),
        "seconds": lasted,
        "wrong": watch.num_wrong,
        "wrong_ones": watch.wrong,
        "growth": watch.growth(),
        "memory": watch.memory,
        "first_p50": firsts[len(firsts) // 2] if firsts else None,
        "first_p99": firsts[len(firsts) * 99 // 100] if firsts else None,
    }


async def bare_engine(*, num_clients: int, seconds: float) -> dict[str, float]:
    """The same questions and clients, without HTTP."""
    from telechat import LLM, SamplingParams
    from telechat.engine import AsyncEngine

    llm = LLM("demo", max_batch_size=num_clients, deterministic=True)
    params = llm.default_params.replace(temperature=0.0, max_tokens=MAX_TOKENS)
    assert isinstance(params, SamplingParams)
    prompts = [llm.tokenizer.apply_chat_template([{"role": "user", "content": text}]) for text in QUESTIONS]
    engine = AsyncEngine(llm)
    start, made = time.perf_counter(), 0

    async def one(turn: int) -> None:
        nonlocal made
        while time.perf_counter() - start < seconds:
            async for delta in engine.stream(prompts[turn % len(prompts)], params):
                made += len(delta.token_ids)
            turn += 1

    try:
        await asyncio.gather(*(one(number) for number in range(num_clients)))
        return {"tokens": float(made), "seconds": time.perf_counter() - start}
    finally:
        engine.close()


def measure_bare(num_clients: int, seconds: float) -> dict[str, float]:
    """`bare_engine` in a process of its own, so that its memory is not the server's."""
    words = [sys.executable, "-m", MODULE, "--bare", "--clients", str(num_clients), "--seconds", str(seconds)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rate(result: dict[str, Any]) -> float:
    """Tokens per second."""
    return float(result["tokens"]) / float(result["seconds"])


def load_rows(num_clients: int, result: dict[str, Any], bare: Sequence[dict[str, float]]) -> list[Outcome]:
    """The report of the load."""
    place = Place("load", OURS)
    name = f"{num_clients} streams"
    ours, alone = rate(result), statistics.mean(rate(each) for each in bare)

    def least(what: str, value: float | None, unit: str, limit: float | None) -> Outcome:
        row = Row(f"{name}: {what}", place, unit=unit, goal=limit, floor=limit, lower_is_better=True)
        return Outcome(row, value=value)

    throughput = Row(
        f"{name}: tokens per second, to the engine alone", place, Place("load", "engine"), goal=0.9, floor=0.9
    )
    return [
        least("answers that failed or differ from the request made alone", float(result["wrong"]), "", 0.0),
        least("growth of memory after the warm-up", result["growth"], "%", 0.05),
        Outcome(throughput, value=ours / alone, ours=ours, peer=alone),
        least("first token, p50", result["first_p50"], "s", None),
        least("first token, p99", result["first_p99"], "s", None),
    ]


@dataclass(frozen=True)
class Peer:
    """Another server of the same weights.

    Attributes:
        words: module and arguments, without the port.
        model: what its requests must name.
        obstacle: why it cannot be started; None when it can.
    """

    name: str
    python: str
    words: tuple[str, ...]
    ready_path: str
    model: str
    obstacle: str | None = None


def all_peers(folder: Path) -> list[Peer]:
    """Ours and the others, with their models written into `folder`."""
    from benchmarks.peers.build import peer_python
    from benchmarks.peers.demo_llama import write_llama
    from benchmarks.peers.server_extras import obstacle

    llama = write_llama(folder / "demo-llama")
    file, why = folder / "demo.gguf", obstacle()
    if why is None:
        command = [str(peer_python()), "-m", "benchmarks.peers.demo_gguf", str(llama), str(file)]
        subprocess.run(command, cwd=ROOT, check=True)
    threads = str(len(os.sched_getaffinity(0)))
    return [
        Peer(OURS, sys.executable, ("telechat", "serve", "demo", "--log-level", "error"), "/ready", "demo"),
        Peer(
            LLAMA,
            str(peer_python()),
            (
                "llama_cpp.server",
                "--model",
                str(file),
                "--n_ctx",
                "2048",
                "--n_threads",
                threads,
                "--verbose",
                "false",
                # By default it breaks off the answer under way when another request comes.
                "--interrupt_requests",
                "false",
            ),
            "/v1/models",
            "demo",
            why,
        ),
        Peer(
            TRANSFORMERS,
            sys.executable,
            (*("transformers.cli.transformers", "serve", str(llama), "--device", "cpu"),),
            "/health",
            str(llama),
        ),
    ]


async def measure_peer(url: str, peer: Peer, seconds: float) -> dict[int, float]:
    """Tokens per second by concurrency."""
    fields = {**FIELDS, "model": peer.model}
    found = {}
    for concurrency in CONCURRENCIES:
        await load(url, QUESTIONS, fields, num_clients=concurrency, seconds=min(5.0, seconds))
        answers, lasted = await load(url, QUESTIONS, fields, num_clients=concurrency, seconds=seconds)
        failed = [answer.error for answer in answers if answer.error]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(answers)} answers failed: {failed[0][:200]}")
        found[concurrency] = sum(answer.num_tokens for answer in answers) / lasted
    return found


def peer_rows(*, rounds: int, seconds: float) -> list[Outcome]:
    """The report of the peers: each server runs alone, in turn, in every round."""
    rates: dict[str, list[dict[int, float]]] = {}
    reasons: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder:
        peers = all_peers(Path(folder))
        for number in range(rounds):
            for peer in peers:
                if peer.obstacle or peer.name in reasons:
                    reasons.setdefault(peer.name, peer.obstacle or "")
                    continue
                say(f"  round {number + 1} of {rounds}: {peer.name}")
                port = free_port()
                try:
                    with serving(
                        *peer.words,
                        "--port",
                        str(port),
                        port=port,
                        ready_path=peer.ready_path,
                        python=peer.python,
                    ) as url:
                        rates.setdefault(peer.name, []).append(asyncio.run(measure_peer(url, peer, seconds)))
                except RuntimeError as error:
                    reasons[peer.name] = str(error)
    return [
        peer_row(rates, reasons, name, concurrency)
        for name in (LLAMA, TRANSFORMERS)
        for concurrency in CONCURRENCIES
    ]


def peer_row(
    rates: dict[str, list[dict[int, float]]], reasons: dict[str, str], name: str, concurrency: int
) -> Outcome:
    """One ratio: the median of the rounds'."""
    case = f"c{concurrency}"
    row = Row(
        f"tokens per second at concurrency {concurrency}, to {name}",
        Place(case, OURS),
        Place(case, name),
        goal=1.0,
        floor=1.0,
    )
    ours, theirs = ([round_[concurrency] for round_ in rates.get(each, [])] for each in (OURS, name))
    if not ours or not theirs:
        return Outcome(row, why=reasons.get(name) or reasons.get(OURS) or "not measured")
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=False)]
    return Outcome(
        row,
        value=statistics.median(ratios),
        rounds=ratios,
        ours=statistics.median(ours),
        peer=statistics.median(theirs),
    )


def measure_load(args: argparse.Namespace, report: dict[str, Any]) -> list[Outcome]:
    """The rows of the load, between two looks at the engine alone; what is behind them goes into `report`."""
    bare_seconds = min(60.0, args.seconds)
    say("the engine alone")
    bare = [measure_bare(args.clients, bare_seconds)]
    say(f"{args.clients} streams")
    port = free_port()
    with demo_server(port, args.clients) as url, ThreadPoolExecutor(1, initializer=give_way) as clients:
        running = run_load(url, num_clients=args.clients, seconds=args.seconds, warmup=args.warmup)
        result = clients.submit(asyncio.run, running).result()
    say("the engine alone, again")
    bare.append(measure_bare(args.clients, bare_seconds))
    report |= {"load": result, "engine_alone": bare}
    return load_rows(args.clients, result, bare)


def main(words: Sequence[str]) -> int:
    """Run, print, write JSON."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300.0, help="of the measured load")
    parser.add_argument("--warmup", type=float, default=30.0, help="seconds of load before it")
    parser.add_argument("--no-peers", action="store_true", help="leave the other servers out")
    parser.add_argument("--no-load", action="store_true", help="only the other servers")
    parser.add_argument("--rounds", type=int, default=3, help="of the other servers")
    parser.add_argument("--peer-seconds", type=float, default=30.0, help="per server, concurrency and round")
    parser.add_argument("--name", default="serve", help="of the file written; default serve")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.clients < 1 or args.rounds < 1 or min(args.seconds, args.peer_seconds) <= 0:
        parser.error("--clients, --rounds, --seconds and --peer-seconds must be above 0")
    if args.bare:
        print(json.dumps(asyncio.run(bare_engine(num_clients=args.clients, seconds=args.seconds))))
        return 0
    report = record.record(MODULE, words, clients=args.clients)
    outcomes: list[Outcome] = []
    if not args.no_load:
        outcomes = measure_load(args, report)
        print("\n".join(lines(outcomes)))
    if not args.no_peers:
        outcomes += peer_rows(rounds=args.rounds, seconds=args.peer_seconds)
        print("\n".join(lines(outcomes)))
    record.write(args.name, {**report, "rows": [each.entry() for each in outcomes]})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
