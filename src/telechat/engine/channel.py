"""What passes between those who ask and the engine that answers: orders one way, reports the other.

Plain values that survive pickling, so that the two sides may be threads or processes. Knows neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from telechat.engine.outputs import Delta, EngineStats, Pooling
from telechat.engine.sampling_params import SamplingParams


@dataclass(frozen=True)
class Add:
    """Start `params.n` answers to a prompt.

    Attributes:
        key: names the request from now on; the sender keeps it unique.
        tenant: who asks; tenants share the engine fairly.
        priority: lower goes first.
        adapter: name of the one to answer with.
    """

    key: int
    prompt_token_ids: list[int]
    params: SamplingParams
    tenant: str = ""
    priority: int = 0
    adapter: str | None = None


@dataclass(frozen=True)
class Embed:
    """Give the vector of a prompt, in one delta.

    Attributes:
        key, adapter: as in `Add`.
        normalize: scale it to length 1.
    """

    key: int
    prompt_token_ids: list[int]
    pooling: Pooling
    normalize: bool
    tenant: str = ""
    adapter: str | None = None


@dataclass(frozen=True)
class LoadAdapter:
    """Read an adapter folder and keep it under a name; an empty last delta says that it is there.

    Attributes:
        key: names this order, as in `Add`.
    """

    key: int
    name: str
    folder: str


@dataclass(frozen=True)
class UnloadAdapter:
    """Take an adapter's name away; answered as `LoadAdapter`. Requests that have begun keep the adapter."""

    key: int
    name: str


@dataclass(frozen=True)
class Cancel:
    """End what is still running of a request. An unknown key is one that has already ended."""

    key: int


@dataclass(frozen=True)
class Close:
    """End everything."""


Order = Add | Embed | LoadAdapter | UnloadAdapter | Cancel | Close


@dataclass(frozen=True)
class Letter:
    """News for one request: what one of its answers gained, or why it failed."""

    key: int
    item: Delta | Exception


@dataclass(frozen=True)
class Report:
    """What a step produced, and where the engine stands after it (None: it has not said yet)."""

    letters: list[Letter] = field(default_factory=list)
    stats: EngineStats | None = None
