"""Rows of all tasks mixed by their shares, and the JSON Lines file that training reads.

A part of the rows are long conversations: plain rows of several tasks after one another, so that later
positions are trained too. Knows no task by name and nothing of tokens.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from telechat.data.demo.task import Message, Row, Split, Task
from telechat.data.demo.tasks import TASKS
from telechat.errors import UsageError

CONVERSATION = "conversation"  # the task name of rows put together here; it has no judge
CONVERSATION_SHARE = 0.06  # of the rows
MAX_CONVERSATION_CHARACTERS = 1500


def generate_rows(
    count: int,
    split: Split,
    seed: int,
    *,
    tasks: Sequence[str] | None = None,
    conversation_share: float = CONVERSATION_SHARE,
) -> Iterator[Row]:
    """Draw `count` rows of a split; the same arguments give the same rows.

    With `tasks`, only rows of the tasks of these names, still by their shares, and no long conversations.
    Raises UsageError for an unknown name.
    """
    chosen = select_tasks(tasks)
    shares = [task.share for task in chosen]
    rng = random.Random(f"rows {split} {seed}")
    for _ in range(count):
        if tasks is None and rng.random() < conversation_share:
            yield draw_conversation(rng, split)
        else:
            yield rng.choices(chosen, weights=shares)[0].draw(rng, split)


def select_tasks(names: Sequence[str] | None) -> list[Task]:
    """The tasks of these names, or all of them for None. Raises UsageError for an unknown name."""
    if names is None:
        return list(TASKS.values())
    for name in names:
        if name not in TASKS:
            raise UsageError(f"there is no demo task {name!r}.", hint=f"Known tasks: {', '.join(TASKS)}.")
    return [TASKS[name] for name in names]


def draw_conversation(rng: random.Random, split: Split) -> Row:
    """Plain rows (no system message, no tools) as turns of one conversation of a drawn length."""
    tasks = select_tasks(None)
    shares = [task.share for task in tasks]
    limit = rng.randint(200, MAX_CONVERSATION_CHARACTERS)
    messages: list[Message] = []
    wordings: list[str] = []
    length = 0
    while True:
        row = rng.choices(tasks, weights=shares)[0].draw(rng, split)
        if row.tools or row.messages[0]["role"] == "system":
            continue
        length += sum(len(message["content"] or "") for message in row.messages)
        if length > limit and len(wordings) >= 2:
            break
        messages.extend(row.messages)
        wordings.append(f"{row.task}: {row.wording}")
    return Row(task=CONVERSATION, messages=messages, wording=" | ".join(wordings))


def to_json(row: Row) -> dict[str, Any]:
    """A row as one JSON object: `messages`, `tools` where it has any, `task`, `wording`, `facts`."""
    record: dict[str, Any] = {"messages": row.messages}
    if row.tools:
        record["tools"] = row.tools
    return {**record, "task": row.task, "wording": row.wording, "facts": row.facts}


def write_jsonl(
    path: Path, count: int, split: Split, seed: int, *, tasks: Sequence[str] | None = None
) -> None:
    """Write `count` rows to `path`, one JSON object a line; the file appears only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            for row in generate_rows(count, split, seed, tasks=tasks):
                stream.write(json.dumps(to_json(row), ensure_ascii=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
