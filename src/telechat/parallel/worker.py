"""A rank beside rank 0: loads its part of the model, then does as it is told until its input ends.

Started by `telechat.parallel.processes`. What builds the model is named in the settings as
"module:attribute", because this layer knows neither checkpoints nor engines.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from telechat.errors import TelechatError
from telechat.logs import setup_logging
from telechat.models.paged import Executor
from telechat.parallel import wire
from telechat.parallel.adapters import cut_adapter, unpack_layers
from telechat.parallel.binding import Binding
from telechat.parallel.groups import Groups
from telechat.parallel.sharding import Layout
from telechat.parallel.tensor import collect_logits
from telechat.parallel.wire import Order
from telechat.registry import import_attribute


def main() -> int:
    """Serve until the input ends; returns the exit code."""
    # Ctrl-C reaches every process of a terminal; this one ends when rank 0 does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders, reports = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what a library prints must not look like a report
    try:
        _serve(orders, reports)
    except Exception as error:  # noqa: BLE001 - the edge of a process: rank 0 tells the user
        message = error.message if isinstance(error, TelechatError) else f"{type(error).__name__}: {error}"
        _report(reports, error=message, hint=getattr(error, "hint", None))
        return 1
    return 0


def _report(pipe: int, **message: Any) -> None:
    os.write(pipe, json.dumps(message).encode() + b"\n")


def _serve(orders: int, reports: int) -> None:
    first = wire.receive(orders)
    if first is None:
        return
    settings = json.loads(first[1])
    setup_logging(settings["log_level"])
    layout, rank = Layout(tp=settings["tp"], ep=settings["ep"]), settings["rank"]
    Binding(rank, layout.world_size, num_threads=settings["num_threads"], bind=settings["bind_cpu"])
    groups = Groups(layout, rank)
    executor: Executor = import_attribute(settings["build"])(settings["settings"], groups)
    _report(reports, ready=True)
    while (frame := wire.receive(orders)) is not None:
        order, payload = frame
        if order is Order.CONNECT:
            groups.connect(settings["port"], executor.device)
        elif order is Order.ALLOCATE:
            executor.allocate(*json.loads(payload))
        elif order is Order.FORWARD:
            collect_logits(executor.forward(wire.unpack_batch(payload)), executor.config.vocab_size, groups)
        elif order is Order.HIDDEN_STATES:
            executor.hidden_states(wire.unpack_batch(payload))
        elif order is Order.LOAD_ADAPTER:
            number, content = wire.split_number(payload)
            layers = cut_adapter(unpack_layers(content), executor.config, layout, rank)
            executor.load_adapter(number, layers)
        elif order is Order.UNLOAD_ADAPTER:
            executor.unload_adapter(wire.split_number(payload)[0])
        elif order is Order.CLOSE:
            groups.close(in_order=True)  # and then wait for the end of the input
    executor.close()


if __name__ == "__main__":
    exit_code = main()
    sys.stderr.flush()
    # Taking an interpreter with torch apart takes long, and gloo's threads may abort in the middle of it.
    os._exit(exit_code)
