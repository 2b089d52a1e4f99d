"""Every task of the demo model, by name. Importing builds the wordings and their split; it draws no row."""

from __future__ import annotations

from telechat.data.demo import (
    arithmetic,
    chicken_rabbit,
    follow_up,
    greetings,
    identity,
    refusal,
    rewriting,
    soy_sauce,
    system_prompt,
    tables,
    tool_call,
    toolkit_help,
)
from telechat.data.demo.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for module in (
        identity,
        greetings,
        toolkit_help,
        soy_sauce,
        arithmetic,
        chicken_rabbit,
        tables,
        rewriting,
        tool_call,
        system_prompt,
        follow_up,
        refusal,
    )
    for task in module.TASKS
}
