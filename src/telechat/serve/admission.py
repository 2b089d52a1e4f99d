"""How many requests may be under way, and whether new ones are taken at all.

Counts; knows neither HTTP nor engines.
"""

from __future__ import annotations

from telechat.serve.errors import queue_full, unavailable


class Admission:
    """Places for requests that run or wait.

    Args:
        limit: number of places.

    Attributes:
        num_taken: places in use.
        is_draining: no new requests; set when the service is told to stop.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_taken = 0
        self.is_draining = False

    def take(self) -> Place:
        """A place, to be given back with its `close`.

        Raises:
            ApiError: 429 when all are taken, 503 while draining.
        """
        if self.is_draining:
            raise unavailable("The service is shutting down.")
        if self.num_taken >= self.limit:
            raise queue_full(
                f"{self.limit} requests are running or waiting, which is the limit. Try again in a moment."
            )
        self.num_taken += 1
        return Place(self)


class Place:
    """One place; closing it twice does no harm."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission

    def close(self) -> None:
        """Give the place back."""
        if self._admission is not None:
            self._admission.num_taken -= 1
            self._admission = None
