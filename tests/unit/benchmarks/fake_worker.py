"""A worker whose figures are given to it: `python fake_worker.py JSON`.

The JSON: {"seconds": [...] one per call, "log": file to note its turns in, "unfit": text, "fail": true}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.workers.loop import Case, Result, serve


def open_worker() -> tuple[dict[str, Case], dict[str, object]]:
    plan = json.loads(sys.argv[1])
    calls = iter(plan["seconds"])

    def work(*, name: str) -> Result:
        print("a library that prints")
        with Path(plan["log"]).open("a", encoding="utf-8") as log:
            log.write(name + "\n")
        if plan.get("fail"):
            raise ValueError("broken engine")
        return {"tokens": 12.0, "seconds": next(calls)}

    return {"work": work}, {"unfit": plan.get("unfit"), "version": "1"}


if __name__ == "__main__":
    sys.exit(serve(open_worker))
