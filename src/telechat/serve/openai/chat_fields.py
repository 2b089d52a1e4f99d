"""The body of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from telechat.serve.openai.fields import (
    MAX_TOP_LOGPROBS,
    GuidedFields,
    SamplingFields,
    StreamFields,
    Strict,
    Tool,
)

TEXT_PARTS = ("text", "input_text", "output_text")


def flatten_content(value: Any) -> Any:
    """A list of text parts becomes one text; anything but text is refused."""
    if not isinstance(value, list):
        return value
    texts: list[str] = []
    for position, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise ValueError(
                f"part {position} is not a text part; this model reads text only, as "
                '{"type": "text", "text": "…"}'
            )
        texts.append(part["text"])
    return "".join(texts)


Text = Annotated[
    str | None,
    BeforeValidator(flatten_content),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]}
    ),
]


class FunctionCall(Strict):
    """What the assistant called."""

    name: str = Field(min_length=1)
    arguments: str = "{}"


class ToolCall(Strict):
    """A call in an assistant message of the conversation so far."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "bot", "tool"] = Field(
        description="`developer` means `system`; `bot`, the original's word, means `assistant`."
    )
    content: Text = Field(None, description="Text, a list of text parts, or null beside tool calls.")
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class JsonSchemaFormat(Strict):
    """A JSON schema with a name."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="Accepted; the answer always follows the schema.")


class ResponseFormat(Strict):
    """Form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("type json_schema needs json_schema: {name, schema}")
        return self


class ChatRequest(SamplingFields, GuidedFields, StreamFields):
    """Body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, description="The conversation: {role, content}, …")
    n: int | None = Field(None, ge=1, description="Number of answers.")
    max_tokens: int | None = Field(
        None, ge=1, description="Longest answer in tokens; without it the model's default, or what fits."
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Report the log-probability of each token.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="And of this many likeliest tokens."
    )
    tools: list[Tool] | None = Field(None, max_length=128, description="Functions the model may call.")
    tool_choice: Any = Field(
        None, description="auto, none, required, or {type: function, function: {name}} to force that one."
    )
    parallel_tool_calls: bool | None = Field(None, description="false ends the answer after one call.")
    response_format: ResponseFormat | None = Field(
        None, description="{type: text}, {type: json_object} or {type: json_schema, json_schema: {schema}}."
    )

    @field_validator("tool_choice")
    @classmethod
    def _check_tool_choice(cls, value: Any) -> Any:
        if value is None or isinstance(value, str | dict):
            return value
        raise ValueError("must be auto, none, required or an object that names a function")

    @property
    def max_answer_tokens(self) -> int | None:
        """Longest answer asked for, under either of its names."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
