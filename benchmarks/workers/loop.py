"""The worker's side of the conversation: one JSON line in, one JSON line out, asleep between them.

Standard library only, so that it runs in a peer's environment too. Knows nothing of what is measured.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

# What a call reports: amounts and seconds, always floats ("tokens" or "gigabytes", "seconds", ...).
Result = dict[str, float]
Case = Callable[..., Result]


def serve(open_worker: Callable[[], tuple[Mapping[str, Case], dict[str, Any]]]) -> int:
    """Make the worker ready and answer calls until standard input ends.

    Args:
        open_worker: loads the engine; returns its cases by name, and what to record about it. Its record may
            hold "unfit": why its figures are not to be used.

    Each call is `{"case": name, "arguments": {...}}`; the answer is the case's result, or `{"error": text}`.
    Whatever a library prints goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def answer(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        cases, about = open_worker()
    except Exception as error:  # noqa: BLE001 -- a process boundary: the other side prints it
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
        return 1
    answer({"about": about, "cases": sorted(cases)})
    for line in sys.stdin:
        call = json.loads(line)
        try:
            answer(cases[call["case"]](**call["arguments"]))
        except Exception as error:  # noqa: BLE001 -- as above
            traceback.print_exc()
            answer({"error": f"{type(error).__name__}: {error}"})
    return 0
