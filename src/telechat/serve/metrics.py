"""What Prometheus reads at `/metrics`: counts and times of requests, and where the engines stand.

One registry per service, so that two in one process do not mix. Labels have few values: routes, statuses and
the adapters that are loaded, never keys or texts. Knows nothing of how requests are answered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from telechat.serve.contract import EngineView

_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PER_TOKEN_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

# Of every engine, by name: what it says, and how to read it from its view.
_GAUGES: tuple[tuple[str, str, Callable[[EngineView], float]], ...] = (
    ("up", "1 while the engine takes requests, else 0", lambda view: float(view.is_alive)),
    ("running", "Answers being computed", lambda view: _stat(view, "num_running")),
    ("waiting", "Answers waiting for a place in the batch", lambda view: _stat(view, "num_waiting")),
    ("cache_blocks", "Blocks of the cache", lambda view: _stat(view, "num_blocks")),
    ("cache_blocks_used", "Blocks of the cache in use by requests", lambda view: _used(view)),
    (
        "cache_blocks_reusable",
        "Blocks in use by no request that still hold a beginning others may share",
        lambda view: _stat(view, "num_cached_blocks"),
    ),
)
_COUNTERS: tuple[tuple[str, str, Callable[[EngineView], float]], ...] = (
    ("restarts", "How often the engine's process died and was started again", lambda v: v.num_restarts),
    ("steps", "Steps of the engine", lambda view: _stat(view, "num_steps")),
    ("computed_tokens", "Tokens the model was given", lambda view: _stat(view, "num_computed_tokens")),
    ("generated_tokens", "Tokens the model generated", lambda view: _stat(view, "num_generated_tokens")),
    (
        "prefix_hit_tokens",
        "Tokens of prompts found in the cache instead of computed",
        lambda view: _stat(view, "num_prefix_hit_tokens"),
    ),
    ("preemptions", "How often a request lost its blocks", lambda view: _stat(view, "num_preemptions")),
    ("draft_tokens", "Guessed tokens that were checked", lambda view: _stat(view, "num_draft_tokens")),
    (
        "accepted_draft_tokens",
        "Guessed tokens that were right",
        lambda view: _stat(view, "num_accepted_drafts"),
    ),
)


def _stat(view: EngineView, name: str) -> float:
    """0 before the engine's first step."""
    return float(getattr(view.stats, name)) if view.stats is not None else 0.0


def _used(view: EngineView) -> float:
    return float(view.stats.num_blocks - view.stats.num_free_blocks) if view.stats is not None else 0.0


class Metrics:
    """The metrics of one service.

    Attributes:
        registry: all of them.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "telechat_requests", "Answered requests", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "telechat_request_seconds",
            "From a request's arrival to the end of its answer",
            ["route"],
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.first_token_seconds = self._histogram(
            "telechat_time_to_first_token_seconds",
            "From a request's arrival to its first token",
            _FIRST_TOKEN_BUCKETS,
        )
        self.token_seconds = self._histogram(
            "telechat_time_per_output_token_seconds",
            "Mean time between the tokens of an answer",
            _PER_TOKEN_BUCKETS,
        )
        self.prompt_tokens = self._counter("telechat_prompt_tokens", "Tokens of prompts")
        self.completion_tokens = self._counter("telechat_completion_tokens", "Tokens of answers")
        self._cancelled = self._counter("telechat_requests_cancelled", "Requests whose client went away")
        self._failed = self._counter(
            "telechat_requests_failed", "Requests let in whose answer ended in an error"
        )

        self.adapter_prompts = Counter(
            "telechat_adapter_prompts",
            "Prompts answered with an adapter",
            ["adapter"],
            registry=self.registry,
        )

    def forget_adapter(self, name: str) -> None:
        """An adapter is gone: so is its label, or there would be ever more of them."""
        with contextlib.suppress(KeyError):
            self.adapter_prompts.remove(name)

    def _histogram(self, name: str, what: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, what, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(name, what, registry=self.registry)

    def watch(
        self,
        engines: Callable[[], Sequence[EngineView]],
        num_requests: Callable[[], int],
        num_lost_lines: Callable[[], int],
    ) -> None:
        """Also show what these say at the moment of each reading.

        Args:
            engines: one per replica.
            num_requests: requests under way.
            num_lost_lines: lines of the access log that could not be written.
        """
        self.registry.register(_Readings(engines, num_requests, num_lost_lines))

    def finish(
        self, route: str, status: int, *, seconds: float, is_cancelled: bool, has_failed: bool
    ) -> None:
        """A request is over."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if is_cancelled:
            self._cancelled.inc()
        if has_failed:
            self._failed.inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """All metrics as text, and its content type, in the form that the reader accepts."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class _Readings:
    """Values that are read, not counted, when somebody asks."""

    def __init__(
        self,
        engines: Callable[[], Sequence[EngineView]],
        num_requests: Callable[[], int],
        num_lost_lines: Callable[[], int],
    ) -> None:
        self._engines = engines
        self._num_requests = num_requests
        self._num_lost_lines = num_lost_lines

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "telechat_requests_in_progress", "Requests running or waiting", value=self._num_requests()
        )
        yield CounterMetricFamily(
            "telechat_access_log_lost_lines",
            "Lines of the access log that could not be written",
            value=self._num_lost_lines(),
        )
        engines = self._engines()
        for name, what, read in _GAUGES:
            gauge = GaugeMetricFamily(f"telechat_engine_{name}", what, labels=["replica"])
            for number, view in enumerate(engines):
                gauge.add_metric([str(number)], read(view))
            yield gauge
        for name, what, read in _COUNTERS:
            counter = CounterMetricFamily(f"telechat_engine_{name}", what, labels=["replica"])
            for number, view in enumerate(engines):
                counter.add_metric([str(number)], read(view))
            yield counter
