"""Data of the demo model, made by ourselves: tasks, rows, and the JSON Lines file that training reads."""

from __future__ import annotations

from telechat.data.demo.rows import generate_rows, write_jsonl
from telechat.data.demo.task import Message, Row, Split, Task, Verdict
from telechat.data.demo.tasks import TASKS

__all__ = ["TASKS", "Message", "Row", "Split", "Task", "Verdict", "generate_rows", "write_jsonl"]
