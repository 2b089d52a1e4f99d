"""What one API key may do: requests and tokens in a minute, and requests at once.

Counts of the last 60 seconds, not of a calendar minute. Knows neither HTTP nor how keys are written.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from telechat.errors import ConfigError
from telechat.serve.errors import rate_limited

WINDOW_SECONDS = 60.0
# Amounts that close together are kept as one entry, so that a window has few of them.
_GRAIN_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one key; None is no limit.

    Attributes:
        requests_per_minute: requests that reach the model, in any 60 seconds.
        tokens_per_minute: tokens of prompts and answers, in any 60 seconds. An answer under way is not cut
            when it passes the limit; the next request then waits.
        concurrency: requests being answered or waiting at once.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.", hint="Leave it out for none.")


class Window:
    """A sum over the last 60 seconds, and up to half a second longer.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # When an entry began, when it is over, and its amount.
        self._entries: deque[tuple[float, float, int]] = deque()
        self._total = 0

    def add(self, amount: int) -> None:
        """Count `amount` now."""
        now = self._clock()
        if self._entries and now - self._entries[-1][0] < _GRAIN_SECONDS:
            begun, _, before = self._entries.pop()
            self._entries.append((begun, now + WINDOW_SECONDS, before + amount))
        else:
            self._entries.append((now, now + WINDOW_SECONDS, amount))
        self._total += amount

    @property
    def total(self) -> int:
        """The sum. An entry counts until its last part is old: never too little."""
        # A moment more, so that rounding does not make the told time too short.
        now = self._clock() + 1e-6
        while self._entries and self._entries[0][1] <= now:
            self._total -= self._entries.popleft()[2]
        return self._total

    def seconds_until(self, most: int) -> int:
        """Whole seconds until the sum is `most` or less if nothing is added; at least 1."""
        total, now = self.total, self._clock()
        for _, over, amount in self._entries:
            total -= amount
            if total <= most:
                return max(1, math.ceil(over - now))
        return 1


class Grant:
    """One key's name, its limits and what it has used.

    Args:
        name: for logs and metrics; also the tenant of the engine, so that keys share it fairly.
        limits: what it may do.
        may_load_adapters: it may change which adapters there are.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        name: str,
        limits: Limits | None = None,
        *,
        may_load_adapters: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.may_load_adapters = may_load_adapters
        self.limits = limits or Limits()
        self.num_open = 0
        self._requests = Window(clock)
        self._tokens = Window(clock)

    def enter(self) -> None:
        """A request begins; `leave` must follow.

        Raises:
            ApiError: 429 with the seconds after which to try again.
        """
        limits = self.limits
        if limits.concurrency is not None and self.num_open >= limits.concurrency:
            raise rate_limited(
                f"This key has {self.num_open} requests under way, which is its limit. Wait for one to end.",
                seconds=1,
            )
        if limits.requests_per_minute is not None and self._requests.total >= limits.requests_per_minute:
            raise rate_limited(
                f"This key has made {self._requests.total} requests in the last minute; "
                f"its limit is {limits.requests_per_minute}.",
                seconds=self._requests.seconds_until(limits.requests_per_minute - 1),
            )
        if limits.tokens_per_minute is not None and self._tokens.total >= limits.tokens_per_minute:
            self._refuse_tokens(limits.tokens_per_minute, 1)
        if limits.requests_per_minute is not None:
            self._requests.add(1)
        self.num_open += 1

    def leave(self) -> None:
        """A request that entered is over."""
        self.num_open -= 1

    def check_prompt(self, num_tokens: int) -> None:
        """Refuse prompts that together have more tokens than this key may use now. Counts nothing.

        Raises:
            ApiError: 429, the tokens would exceed the limit.
        """
        limit = self.limits.tokens_per_minute
        if limit is None:
            return
        if num_tokens > limit:
            raise rate_limited(
                f"The prompt has {num_tokens} tokens; this key may use {limit} in a minute.", seconds=None
            )
        if self._tokens.total + num_tokens > limit:
            self._refuse_tokens(limit, num_tokens)

    def count_tokens(self, num_tokens: int) -> None:
        """Count tokens of a prompt or of an answer."""
        if self.limits.tokens_per_minute is not None:
            self._tokens.add(num_tokens)

    def _refuse_tokens(self, limit: int, wanted: int) -> None:
        raise rate_limited(
            f"This key has used {self._tokens.total} tokens in the last minute; its limit is {limit}.",
            seconds=self._tokens.seconds_until(limit - wanted),
        )
