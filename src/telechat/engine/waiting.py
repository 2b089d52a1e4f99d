"""The requests that wait, and whose turn it is. Knows no blocks and no tensors.

A lower priority number comes first. Within a priority it is the turn of the tenant that has been served the
fewest tokens, so that one who floods the queue delays himself; within a tenant, first come, first served.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator

from telechat.engine.request import Request

# (priority, tokens served to the tenant, its running requests, number): the smallest is next.
Rank = tuple[int, int, int, int]


class WaitingQueue:
    """Waiting requests by priority and tenant, and what each present tenant has been served.

    A tenant is present from its first unfinished request (`enter`) to its last (`leave`). Who comes back, or
    is new, starts level with the least served one present, less `welcome_tokens`: so much is served before
    the others, whose steps are full, come to have their share; otherwise absence earns nothing.
    """

    def __init__(self, welcome_tokens: int = 0) -> None:
        self._welcome_tokens = welcome_tokens
        self._lanes: dict[int, dict[str, OrderedDict[Request, None]]] = {}
        self._num_waiting = 0
        self._num_present: Counter[str] = Counter()
        self._num_served: dict[str, int] = {}
        self.num_running: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Request]:
        for tenants in self._lanes.values():
            for lane in tenants.values():
                yield from lane

    def enter(self, request: Request) -> None:
        """A new request, which waits behind its tenant's earlier ones."""
        if request.tenant not in self._num_served:
            least_served = min(self._num_served.values(), default=0)
            self._num_served[request.tenant] = least_served - self._welcome_tokens
        self._num_present[request.tenant] += 1
        self._lane(request)[request] = None
        self._num_waiting += 1

    def leave(self, request: Request) -> None:
        """This request, running or already taken out, is finished."""
        self._num_present[request.tenant] -= 1
        if not self._num_present[request.tenant]:
            del self._num_present[request.tenant], self._num_served[request.tenant]
            self.num_running.pop(request.tenant, None)

    def take_out(self, request: Request) -> None:
        """It waits no longer."""
        lane = self._lane(request)
        del lane[request]
        self._num_waiting -= 1
        if not lane:
            tenants = self._lanes[request.priority]
            del tenants[request.tenant]
            if not tenants:
                del self._lanes[request.priority]

    def put_back(self, request: Request) -> None:
        """It had been taken out and waits again, before its tenant's others."""
        lane = self._lane(request)
        lane[request] = None
        lane.move_to_end(request, last=False)
        self._num_waiting += 1

    def first(self) -> Request | None:
        """Whose turn it is."""
        if not self._lanes:
            return None
        tenants = self._lanes[min(self._lanes)]
        heads = [next(iter(lane)) for lane in tenants.values()]
        return heads[0] if len(heads) == 1 else min(heads, key=self.rank)

    def rank(self, request: Request) -> Rank:
        """Order of turns, also among requests that run."""
        tenant = request.tenant
        return request.priority, self._num_served[tenant], self.num_running[tenant], request.number

    def charge(self, tenant: str, num_tokens: int) -> None:
        """So many tokens are being computed for this tenant."""
        self._num_served[tenant] += num_tokens

    @property
    def num_tenants(self) -> int:
        """Tenants with unfinished requests."""
        return len(self._num_present)

    def _lane(self, request: Request) -> OrderedDict[Request, None]:
        return self._lanes.setdefault(request.priority, {}).setdefault(request.tenant, OrderedDict())
