"""The body of `POST /v1/responses`.

The service keeps nothing between requests, so fields that refer to something kept are refused, with what to
do instead.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from telechat.serve.openai.chat_fields import Text
from telechat.serve.openai.fields import MAX_TOP_LOGPROBS, GuidedFields, SamplingFields, Strict, Written

LOGPROBS = "message.output_text.logprobs"
_NOTHING_KEPT = "this service keeps nothing between requests; send the whole conversation as input"


class InputMessage(Strict):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text


class InputCall(Strict):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: str | None = None
    name: str = Field(min_length=1)
    arguments: str = "{}"


class InputOutput(Strict):
    """What a function that was called returned."""

    type: Literal["function_call_output"]
    call_id: str | None = None
    output: Text


class FunctionTool(Written):
    """An entry of `tools`."""

    type: Literal["function"]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(Strict):
    """Form of the text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Accepted; the answer always follows the schema.")


class TextOptions(Strict):
    """What the text must look like."""

    format: TextFormat | None = None


def _check_input(value: Any) -> Any:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return value
    raise ValueError("must be a text or a list of items, and not empty")


Input = Annotated[
    Any,
    BeforeValidator(_check_input),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}),
]


class ResponseRequest(SamplingFields, GuidedFields):
    """Body of `POST /v1/responses`."""

    input: Input = Field(
        description="A question, or the conversation: messages, function calls and their outputs."
    )
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(
        None, ge=1, description="Longest answer in tokens; without it the model's default, or what fits."
    )
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    tools: list[FunctionTool] | None = Field(
        None, max_length=128, description="Functions the model may call: {type: function, name, parameters}."
    )
    tool_choice: Any = Field(None, description="auto, none, required, or {type: function, name}.")
    parallel_tool_calls: bool | None = Field(None, description="false ends the answer after one call.")
    text: TextOptions | None = Field(
        None, description="{format: {type: json_schema, name, schema}}: what the text must look like."
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="Log-probabilities of so many likeliest tokens."
    )
    include: list[str] | None = Field(None, description=f"{LOGPROBS} reports log-probabilities.")
    metadata: dict[str, str] | None = Field(None, description="Given back as it is.")
    user: str | None = Field(None, description="Accepted and not used.")
    store: bool | None = Field(None, description="Only false: nothing is kept.")
    previous_response_id: str | None = Field(None, description="Refused: nothing is kept.")
    conversation: Any = Field(None, description="Refused: nothing is kept.")
    prompt: Any = Field(None, description="Refused: there are no prompts kept here.")
    background: bool | None = Field(None, description="Only false: answers are not kept.")
    truncation: str | None = Field(None, description="Only disabled: prompts are never cut.")

    @field_validator("store", "background")
    @classmethod
    def _check_store(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError(f"{_NOTHING_KEPT}. Use false")
        return value

    @field_validator("previous_response_id", "conversation", "prompt")
    @classmethod
    def _check_reference(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError(_NOTHING_KEPT)
        return value

    @field_validator("truncation")
    @classmethod
    def _check_truncation(cls, value: str | None) -> str | None:
        if value not in (None, "disabled"):
            raise ValueError("prompts are never cut here; use disabled")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _check_tool_choice(cls, value: Any) -> Any:
        if value is None or isinstance(value, str | dict):
            return value
        raise ValueError("must be auto, none, required or an object that names a function")

    @property
    def wants_logprobs(self) -> bool:
        """Log-probabilities are to be reported."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())
