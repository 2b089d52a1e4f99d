"""What an answer must look like: `response_format`, vLLM's `structured_outputs`, and its older `guided_…`.

Compiles what was asked for before anything is generated, so that an error is a 400 that names the field.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from telechat.engine.sampling_params import StructuredOutputs
from telechat.errors import RequestError
from telechat.serve.contract import ServiceModel
from telechat.serve.errors import bad_field
from telechat.serve.openai.chat_fields import ResponseFormat
from telechat.serve.openai.fields import GuidedFields
from telechat.serve.openai.tool_grammar import call_grammar
from telechat.serve.openai.tools import FIELD as TOOL_CHOICE
from telechat.serve.openai.tools import ToolPlan

# As in the engine: some white space between the tokens of a JSON text, and an end to it.
_WHITESPACE = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}"}


@dataclass(frozen=True)
class Structure:
    """What an answer must look like, and which field of the request says so."""

    outputs: StructuredOutputs
    field: str


def from_response_format(given: ResponseFormat | None, field: str) -> Structure | None:
    """Of an OpenAI request; None when any text will do.

    Args:
        given: the field's value.
        field: its name, for errors.
    """
    if given is None or given.type == "text":
        return None
    if given.json_schema is None:
        return Structure(StructuredOutputs(json_object=True), field)
    return Structure(StructuredOutputs(json=given.json_schema.schema_), field)


def from_guided(body: GuidedFields) -> list[Structure]:
    """Of the extensions; normally none or one.

    Raises:
        RequestError: `structured_outputs` has none or several of its fields.
    """
    found: list[Structure] = []
    if body.structured_outputs is not None:
        given = body.structured_outputs
        outputs = StructuredOutputs(
            json=given.json_,
            json_object=bool(given.json_object),
            regex=given.regex,
            choice=None if given.choice is None else tuple(given.choice),
            grammar=given.grammar,
        )
        found.append(Structure(outputs, "structured_outputs"))
    if body.guided_json is not None:
        found.append(Structure(StructuredOutputs(json=body.guided_json), "guided_json"))
    if body.guided_regex is not None:
        found.append(Structure(StructuredOutputs(regex=body.guided_regex), "guided_regex"))
    if body.guided_choice is not None:
        found.append(Structure(StructuredOutputs(choice=tuple(body.guided_choice)), "guided_choice"))
    if body.guided_grammar is not None:
        found.append(Structure(StructuredOutputs(grammar=body.guided_grammar), "guided_grammar"))
    return found


def the_one(found: list[Structure]) -> Structure | None:
    """The structure among those that the fields of a request gave, if any.

    Raises:
        ApiError: 400, there are several.
    """
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        raise bad_field(f"{second} and {first} both say what the answer must look like; give one.", second)
    return found[0] if found else None


async def settle(
    model: ServiceModel, structure: Structure | None, plan: ToolPlan | None
) -> StructuredOutputs | None:
    """What the engine is to obey: the structure, the calls that are forced, or either of them.

    Raises:
        ApiError: 400 that names the field, where it cannot be compiled or does not go with tools.
    """
    if structure is not None:
        await _check(model, structure)
    if plan is not None and (plan.is_forced or structure is not None):
        return await _with_calls(model, structure, plan)
    return None if structure is None else structure.outputs


async def _with_calls(model: ServiceModel, structure: Structure | None, plan: ToolPlan) -> StructuredOutputs:
    # An answer that must be a call has no text that could have a structure.
    answer = _json_schema(structure) if structure is not None and not plan.is_forced else None
    token_id = model.tokenizer.token_to_id
    outputs = call_grammar(plan.functions, token_id, only_first=plan.only_first, answer=answer)
    try:
        await asyncio.to_thread(model.intake.check_grammar, outputs)
    except RequestError as error:
        # One of the functions; which one is what the client wants to know.
        for function in plan.functions:
            alone = call_grammar([function], token_id, only_first=True)
            await _check(model, Structure(alone, function.field))
        raise bad_field(_sentence(TOOL_CHOICE, error), TOOL_CHOICE) from error
    return outputs


def _json_schema(structure: Structure) -> Mapping[str, Any]:
    """For an answer beside calls, the only kind of structure that can be told from a call."""
    outputs = structure.outputs
    if outputs.json_object:
        return {"type": "object", "x-guidance": _WHITESPACE}
    if not isinstance(outputs.json, Mapping):
        raise bad_field(
            f"{structure.field} does not go with tools, unless it is a JSON schema given as an object. "
            "Leave it out, or set tool_choice to none or required.",
            structure.field,
        )
    return {**outputs.json, "x-guidance": _WHITESPACE}


async def _check(model: ServiceModel, structure: Structure) -> None:
    try:
        await asyncio.to_thread(model.intake.check_grammar, structure.outputs)
    except RequestError as error:
        raise bad_field(_sentence(structure.field, error), structure.field) from error


def _sentence(field: str, error: RequestError) -> str:
    reason = error.message.removeprefix("structured_outputs ")
    return f"{field} {reason}" if reason != error.message else f"{field}: {reason}"
