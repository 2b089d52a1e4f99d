"""Which functions an answer may call, and whether it must: `tools`, `tool_choice`, `parallel_tool_calls`.

Knows the fields of a request; neither how calls are written (`tool_parser`) nor how they are forced
(`tool_grammar`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telechat.serve.errors import ApiError, bad_field

FIELD = "tool_choice"


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function that an answer may call.

    Attributes:
        name: as declared.
        parameters: JSON schema of the arguments; None is a function without arguments.
        is_strict: a forced call follows every keyword of the schema, or is refused.
        field: where the schema stands in the request, for errors.
    """

    name: str
    parameters: Mapping[str, Any] | None
    is_strict: bool
    field: str


@dataclass(frozen=True, kw_only=True)
class ToolPlan:
    """What a request asks of tools.

    Attributes:
        offered: tools as the prompt shows them, exactly as the client wrote them.
        functions: those that may be called.
        is_forced: the answer is nothing but calls.
        only_first: the answer ends after its first call.
    """

    offered: Sequence[Mapping[str, Any]]
    functions: Sequence[Function]
    is_forced: bool
    only_first: bool

    @property
    def names(self) -> dict[str, str]:
        """Names of the functions; a model may leave out spaces around one, so the keys have none."""
        return {function.name.strip(): function.name for function in self.functions}


def plan_tools(
    offered: Sequence[Mapping[str, Any]], functions: Sequence[Function], choice: Any, *, parallel: bool | None
) -> ToolPlan | None:
    """What the fields mean together; None when nothing may be called.

    Args:
        offered: tools in OpenAI's chat shape.
        functions: the same, read.
        choice: `tool_choice` of a chat or responses request; None is `auto`.
        parallel: `parallel_tool_calls`; None is true.

    Raises:
        ApiError: 400, `tool_choice` is malformed or names what is not there.
    """
    mode, named = _read_choice(choice)
    if mode == "none" or (not offered and mode == "auto" and named is None):
        return None
    known = {function.name for function in functions}
    missing = [name for name in named or () if name not in known]
    if missing:
        raise _bad_choice(f"names the function {missing[0][:200]!r}, which is not among the tools")
    if not offered:
        raise _bad_choice(f"is {mode}, but there are no tools")
    chosen = [function for function in functions if named is None or function.name in named]
    return ToolPlan(
        offered=offered, functions=chosen, is_forced=mode == "required", only_first=parallel is False
    )


def _read_choice(choice: Any) -> tuple[str, list[str] | None]:
    """(auto, none or required; the functions it is limited to, None for all)."""
    if choice is None or choice in ("auto", "none", "required"):
        return choice or "auto", None
    if not isinstance(choice, Mapping):
        raise _bad_choice("must be auto, none, required or an object that names a function")
    if choice.get("type") == "allowed_tools":
        return _read_allowed(choice)
    return "required", [_function_name(choice)]


def _read_allowed(choice: Mapping[str, Any]) -> tuple[str, list[str]]:
    """OpenAI's choice among some of the tools; its fields stand one level deeper in chat requests."""
    allowed = choice.get("allowed_tools", choice)
    tools = allowed.get("tools") if isinstance(allowed, Mapping) else None
    if not isinstance(tools, list) or not tools or allowed.get("mode") not in ("auto", "required"):
        raise _bad_choice("of type allowed_tools needs a mode, auto or required, and a list of tools")
    return allowed["mode"], [_function_name(tool) for tool in tools]


def _function_name(value: Any) -> str:
    """Of `{type: function, function: {name}}`, or of `{type: function, name}` as responses have it."""
    if isinstance(value, Mapping) and value.get("type") == "function":
        inner = value.get("function", value)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if isinstance(name, str) and name:
            return name
    raise _bad_choice("must name a function: {type: function, function: {name: …}}")


def _bad_choice(problem: str) -> ApiError:
    return bad_field(f"{FIELD} {problem}.", FIELD)
