"""The comparisons of `make bench-decode`: who takes part, what is measured, goal and floor of each row.

A group's workers are in memory at the same time; groups follow one another. Knows nothing of processes or
reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.arrivals import random_arrivals
from benchmarks.harness import Case
from benchmarks.shapes import GGUF_TYPES, SHAPES
from benchmarks.table import Place, Row

OURS, LLAMA, TRANSFORMERS, MEMORY = "telechat", "llama.cpp", "transformers", "memory"
# Ours where there is no C compiler: with the package ziglang, and without it.
ZIGLANG, TORCH = "telechat-ziglang", "telechat-torch"
PROMPT = 64


@dataclass(frozen=True)
class WorkerPlan:
    """Which program a worker is, and with what options.

    Attributes:
        kind: `telechat`, `telechat-ziglang` (kernels compiled by that package), `telechat-torch` (no compiled
            kernels), `llama.cpp`, `transformers` or `memory`.
        options: words after the program's name.
    """

    kind: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Workers that are compared with one another.

    Attributes:
        cases: name -> the workers' name for it, and arguments.
        workers: name -> plan, in the order of their turns.
    """

    name: str
    workers: Mapping[str, WorkerPlan]
    cases: Mapping[str, tuple[str, Mapping[str, object]]]
    rows: Sequence[Row]

    def selected(self, wanted: Callable[[str], bool]) -> Group:
        """The same with only the rows whose names are wanted, and the workers they need."""
        rows = [row for row in self.rows if wanted(row.name)]
        names = {place.worker for row in rows for place in row.places}
        workers = {name: plan for name, plan in self.workers.items() if name in names}
        return Group(self.name, workers, self.cases, rows)

    def without_engine(self) -> Group:
        """The same with only the rows that the kernels by themselves can take part in."""
        able = [
            row
            for row in self.rows
            if row.ours.worker == OURS and self.cases[row.ours.case][0] in ("decode", "prefill")
        ]
        return Group(self.name, self.workers, self.cases, able)

    def without_goals_against(self, peer: str) -> Group:
        """The same with only the figures of rows that are beside that worker."""
        rows = [
            replace(row, goal=None, floor=None) if row.peer is not None and row.peer.worker == peer else row
            for row in self.rows
        ]
        return Group(self.name, self.workers, self.cases, rows)

    def turns(self) -> list[Case]:
        """What to measure for the rows, in order."""
        turns = []
        for name, (call, arguments) in self.cases.items():
            needed = {place.worker for row in self.rows for place in row.places if place.case == name}
            if needed:
                takers = tuple(worker for worker in self.workers if worker in needed)
                turns.append(Case(name, takers, arguments, call))
        return turns


# (shape, format) -> case -> (goal, floor), against llama.cpp at the same bits, both with AMX.
AGAINST_LLAMA: dict[tuple[str, str], dict[str, tuple[float | None, float | None]]] = {
    ("M", "int4"): {"decode b1": (1.15, 1.0), "decode b8": (2.0, 1.5), "prefill 512": (4.5, 2.7)},
    ("M", "int8"): {"decode b1": (1.1, 1.0), "decode b8": (1.5, 1.2), "prefill 512": (4.5, 2.7)},
    ("M", "bf16"): {"decode b1": (1.3, 1.1), "decode b8": (1.7, 1.4), "prefill 512": (10, 7)},
    ("S", "int4"): {"decode b1": (1.05, 0.9), "decode b8": (None, None), "prefill 512": (None, None)},
}
# Without a C compiler: format -> floor at batch 1; prefill has one floor for all.
WITHOUT_COMPILER = {"int4": 0.55, "int8": 0.8, "bf16": 1.0}
PREFILL_WITHOUT_COMPILER = 1.5


# Folders of other tools, as the worker calls them -> (name in a row, the peer's format of like size).
FOLDERS = {
    "gptq-int4": ("gptq int4", "int4"),
    "gptq-int8": ("gptq int8", "int8"),
    "awq": ("awq", "int4"),
    "w8a8": ("w8a8", "int8"),
}


def folders_against_llama(shape: str, steps: int) -> Group:
    """Folders in the formats of other tools, as they are, and llama.cpp.

    Each keeps more of the model in bf16 than the peer, which also quantises the head.
    """
    peers = {bits: f"{LLAMA} {GGUF_TYPES[bits]}" for bits in ("int4", "int8")}
    workers = {
        **{name: WorkerPlan(OURS, ("--shape", shape, "--format", name)) for name in FOLDERS},
        **{peer: WorkerPlan(LLAMA, ("--shape", shape, "--format", bits)) for bits, peer in peers.items()},
    }
    cases = cases_against_llama(steps)
    rows = [
        Row(f"{shape} {title} {case}", Place(case, name), Place(case, peers[bits]))
        for name, (title, bits) in FOLDERS.items()
        for case in cases
    ]
    return Group(f"{shape} folders of other tools and llama.cpp", workers, cases, rows)


def cases_against_llama(steps: int) -> dict[str, tuple[str, Mapping[str, object]]]:
    """Decoding one and eight, and a prompt."""
    return {
        "decode b1": ("decode", {"batch": 1, "prompt": PROMPT, "steps": steps}),
        "decode b8": ("decode", {"batch": 8, "prompt": PROMPT, "steps": max(steps // 2, 4)}),
        "prefill 512": ("prefill", {"prompt": 512}),
    }


def against_llama(shape: str, weight_format: str, steps: int) -> Group:
    """Ours, with and without compiled kernels, and llama.cpp; memory bandwidth beside them."""
    workers = {
        MEMORY: WorkerPlan(MEMORY),
        OURS: WorkerPlan(OURS, ("--shape", shape, "--format", weight_format)),
        LLAMA: WorkerPlan(LLAMA, ("--shape", shape, "--format", weight_format)),
        ZIGLANG: WorkerPlan(ZIGLANG, ("--shape", shape, "--format", weight_format)),
        TORCH: WorkerPlan(TORCH, ("--shape", shape, "--format", weight_format)),
    }
    cases: dict[str, tuple[str, Mapping[str, object]]] = {
        "memory": ("read", {}),
        **cases_against_llama(steps),
    }
    title = f"{shape} {weight_format}"
    rows = [
        Row(f"{title} {case}", Place(case, OURS), Place(case, LLAMA), goal=goal, floor=floor)
        for case, (goal, floor) in AGAINST_LLAMA[shape, weight_format].items()
    ]
    headline = (shape, weight_format) == ("M", "int4")
    rows.append(
        Row(
            f"{title} decode b1, share of memory bandwidth",
            Place("decode b1", OURS),
            Place("memory", MEMORY),
            factor=SHAPES[shape].bytes_per_token(weight_format, is_compact=True) / 1e9,
            unit="%",
            goal=0.88 if headline else None,
            floor=0.75 if headline else None,
        )
    )
    if shape == "M":
        for case, floor in (
            ("decode b1", WITHOUT_COMPILER[weight_format]),
            ("prefill 512", PREFILL_WITHOUT_COMPILER),
        ):
            for worker, way in ((ZIGLANG, "no compiler"), (TORCH, "no compiler, torch alone")):
                rows.append(
                    Row(f"{title} {case}, {way}", Place(case, worker), Place(case, LLAMA), floor=floor)
                )
    return Group(f"{title} and llama.cpp", workers, cases, rows)


def against_transformers(new_tokens: int) -> list[Group]:
    """bf16 on both sides: `generate`, eight at once, and 32 that arrive at random."""

    def workers(shape: str) -> dict[str, WorkerPlan]:
        return {
            OURS: WorkerPlan(OURS, ("--shape", shape, "--format", "bf16")),
            TRANSFORMERS: WorkerPlan(TRANSFORMERS, ("--shape", shape)),
        }

    def eight_row(shape: str) -> Row:
        name = f"{shape} bf16 8 at once, generate_batch"
        return Row(name, Place("8 at once", OURS), Place("8 at once", TRANSFORMERS), goal=3, floor=3)

    eight = {"batch": 8, "prompt": PROMPT, "new_tokens": new_tokens}
    cases: dict[str, tuple[str, Mapping[str, object]]] = {
        "generate b1": ("generate", {"batch": 1, "prompt": PROMPT, "new_tokens": new_tokens}),
        "generate b8": ("generate", eight),
        "8 at once": ("concurrent", eight),
        "8 at once, tuned": ("concurrent_tuned", eight),
    }
    rows = [
        Row(
            "M bf16 generate b1",
            Place("generate b1", OURS),
            Place("generate b1", TRANSFORMERS),
            goal=1.1,
            floor=1.1,
        ),
        eight_row("M"),
        Row(
            "M bf16 8 at once, generate_batch tuned and running",
            Place("8 at once", OURS),
            Place("8 at once, tuned", TRANSFORMERS),
        ),
        Row(
            "M bf16 8 at once, static generate", Place("8 at once", OURS), Place("generate b8", TRANSFORMERS)
        ),
    ]
    arrivals = random_arrivals(32, seconds=4, prompts=(16, 256), new_tokens=(8, new_tokens + 8), seed=5)
    mixed = {"arrivals": [arrival.entry() for arrival in arrivals]}
    mixed_row = Row(
        "S bf16 32 random arrivals, generate one by one",
        Place("32 arrivals", OURS),
        Place("32 arrivals", TRANSFORMERS),
        goal=5,
        floor=5,
    )
    return [
        Group("M bf16 and transformers", workers("M"), cases, rows),
        Group(
            "S bf16 and transformers",
            workers("S"),
            {"8 at once": cases["8 at once"], "32 arrivals": ("arrivals", mixed)},
            [eight_row("S"), mixed_row],
        ),
    ]


def by_ourselves(steps: int) -> list[Group]:
    """What the engine costs and saves, with no peer."""
    return [shared_work(), overhead(steps), small_cache(steps)]


def shared_work() -> Group:
    """What a request gains from another's prefix, and loses while another tenant floods the engine."""
    return Group(
        "M int4 engine",
        {OURS: WorkerPlan(OURS, ("--shape", "M", "--format", "int4", "--cache-tokens", "20480"))},
        {
            "prefix": ("prefix", {"shared": 2000, "own": 32}),
            "fairness": ("fairness", {"flood": 500, "prompt": 256, "new_tokens": 16}),
        },
        [
            Row(
                "M int4 second request's first token, 2,000 shared",
                Place("prefix", OURS),
                key="second_to_first",
                unit="%",
                goal=0.10,
                floor=0.10,
                lower_is_better=True,
            ),
            Row(
                "M int4 first token while another floods",
                Place("fairness", OURS),
                key="delay",
                goal=2,
                floor=2,
                lower_is_better=True,
            ),
        ],
    )


def overhead(steps: int) -> Group:
    """What a step of a tiny model spends on other things than the model."""
    batch = {"batch": 32, "steps": 4 * steps}
    return Group(
        "demo model",
        {OURS: WorkerPlan(OURS, ("--demo",))},
        {
            "greedy": ("overhead", {**batch, "is_random": False}),
            "random": ("overhead", {**batch, "is_random": True}),
        },
        [
            *(
                Row(
                    f"demo b32 scheduling and {case} sampling, share of a step",
                    Place(case, OURS),
                    key="share",
                    unit="%",
                    goal=0.05,
                    floor=0.05,
                    lower_is_better=True,
                )
                for case in ("greedy", "random")
            ),
            Row(
                "demo b32 all outside the model, share of a step",
                Place("greedy", OURS),
                key="share_outside_model",
                unit="%",
                lower_is_better=True,
            ),
        ],
    )


def small_cache(steps: int) -> Group:
    """A cache of integers beside one in bf16."""
    plain, small = OURS, f"{OURS}-int8-kv"
    options = ("--shape", "S", "--format", "int4")
    return Group(
        "S int4 cache",
        {
            plain: WorkerPlan(OURS, options),
            small: WorkerPlan(OURS, (*options, "--kv-cache-dtype", "int8")),
        },
        {"long decode b8": ("decode", {"batch": 8, "prompt": 1024, "steps": steps})},
        [
            Row(
                "S int4 decode b8 at 1,024, int8 cache to bf16 cache",
                Place("long decode b8", small),
                Place("long decode b8", plain),
            )
        ],
    )


def all_groups(*, steps: int = 24) -> list[Group]:
    """Everything, the headline rows first."""
    return [
        *(against_llama(shape, weight_format, steps) for shape, weight_format in AGAINST_LLAMA),
        folders_against_llama("M", steps),
        *against_transformers(steps + 8),
        *by_ourselves(steps),
    ]
