"""Steps an engine until the requests of one caller are done, handing out what they give.

Several callers of one thread may be at it in turn: whoever steps, all requests go on. Knows nothing of
prompts or models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from telechat.engine.engine import Engine
from telechat.engine.outputs import Delta
from telechat.engine.progress import Progress
from telechat.engine.request import Request

Output = TypeVar("Output")


@contextlib.contextmanager
def running(engine: Engine, requests: Sequence[Request]) -> Iterator[None]:
    """These requests are in the engine; whatever happens, none of them stays behind."""
    added: list[Request] = []
    try:
        for request in requests:
            engine.add(request)
            added.append(request)
        yield
    finally:
        for request in added:
            engine.cancel(request)


def complete(
    engine: Engine,
    groups: list[list[Request]],
    finish: Callable[[Sequence[Request]], Output],
    *,
    progress: bool = False,
) -> Iterator[tuple[int, Output]]:
    """Step until every group is done; what `finish` makes of each is handed out when it is."""
    number_of = {request: number for number, group in enumerate(groups) for request in group}
    num_open = [len(group) for group in groups]
    with running(engine, list(number_of)), Progress(len(number_of), enabled=progress) as bar:
        num_steps = engine.num_steps
        while number_of:
            num_tokens = engine.num_generated_tokens
            # While the caller had an output, another call may have stepped the engine: then look at all.
            stepped = engine.step() if engine.num_steps == num_steps else list(number_of)
            num_steps = engine.num_steps
            bar.advance(num_tokens=engine.num_generated_tokens - num_tokens)
            for request in stepped:
                if not request.is_finished or request not in number_of:
                    continue
                number = number_of.pop(request)
                num_open[number] -= 1
                bar.advance(num_requests=1)
                if not num_open[number]:
                    group, groups[number] = groups[number], []
                    yield number, finish(group)


def stream_deltas(engine: Engine, requests: Sequence[Request]) -> Iterator[Delta]:
    """What the answers gain, as they gain it; raises the error of one that failed."""
    still_open = list(requests)
    with running(engine, requests):
        while still_open:
            engine.step()
            for request in list(still_open):
                # Looked at first: while the caller has a delta, another call may step the engine.
                is_last = request.is_finished
                delta = request.take_delta()
                if is_last:
                    still_open.remove(request)
                if request.error:
                    raise request.error
                if delta is not None:
                    yield delta
