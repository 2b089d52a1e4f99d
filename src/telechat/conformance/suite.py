"""All checks, and running them one after another against a server.

A check that trips over an answer it did not foresee counts as failed: so would a client.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import httpx

from telechat.conformance import basics, others, refusals, streams, tools
from telechat.conformance.api import Api
from telechat.conformance.check import Check, FailedError, Outcome, Result, SkippedError

CHECKS: tuple[Check[Api], ...] = (
    *basics.CHECKS,
    *streams.CHECKS,
    *refusals.CHECKS,
    *tools.CHECKS,
    *others.CHECKS,
)
# What reading an answer of another shape raises; anything else is a mistake of ours.
_UNFORESEEN = (KeyError, IndexError, TypeError, AttributeError, ValueError)


def run_checks(api: Api, checks: Sequence[Check[Api]] = CHECKS) -> Iterator[Outcome]:
    """The outcome of each check, as soon as it is known."""
    for check in checks:
        result, detail = _result(check, api)
        yield Outcome(check.name, check.needed_by, check.why, result, detail)


def _result(check: Check[Api], api: Api) -> tuple[Result, str]:
    try:
        check.run(api)
    except FailedError as error:
        return "failed", str(error)
    except SkippedError as error:
        return "skipped", str(error)
    except httpx.HTTPError as error:
        return "failed", f"no answer: {type(error).__name__} {error}".strip()
    except _UNFORESEEN as error:
        return "failed", f"the answer has another shape: {type(error).__name__} {error}"
    return "passed", ""
