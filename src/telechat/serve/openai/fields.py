"""The fields of a chat completion request, with their types and ranges.

Types are strict (`"0.5"` is no number); unknown fields are ignored, as OpenAI's clients expect. Fields whose
effect this service does not have are refused when they ask for that effect, never swallowed. Pydantic ends
here: behind this module are plain values.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    WithJsonSchema,
    field_validator,
    model_validator,
)

MAX_STOP_STRINGS = 16
MAX_TOP_LOGPROBS = 20
_INT64_MAX = 2**63 - 1


class Strict(BaseModel):
    """Base of all request models."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", frozen=True)


def _flatten_content(value: Any) -> Any:
    """A list of text parts becomes one text; anything but text is refused."""
    if not isinstance(value, list):
        return value
    texts: list[str] = []
    for position, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                f"part {position} is not a text part; this model reads text only, as "
                '{"type": "text", "text": "…"}'
            )
        texts.append(part["text"])
    return "".join(texts)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[
    str | None,
    BeforeValidator(_flatten_content),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]}
    ),
]
StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
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


class FunctionSpec(Strict):
    """A function the model may call."""

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments.")


class Tool(Strict):
    """An entry of `tools`."""

    type: Literal["function"]
    function: FunctionSpec
    # The model is shown what the client wrote, in its order and with fields that we do not know.
    _written: dict[str, Any] = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _keep_as_written(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        tool = handler(value)
        tool._written = value
        return tool

    @property
    def as_written(self) -> dict[str, Any]:
        """The entry, exactly as sent."""
        return self._written


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool | None = Field(None, description="Send one more chunk that holds `usage`.")


class ResponseFormat(Strict):
    """Form of the answer; only plain text is available."""

    type: str


class ChatRequest(Strict):
    """Body of `POST /v1/chat/completions`."""

    model: str | None = Field(
        None, description="Name of the model as in /v1/models; without it, the one served."
    )
    messages: list[Message] = Field(min_length=1, description="The conversation: {role, content}, …")
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="{include_usage: true} counts tokens.")
    n: int | None = Field(None, ge=1, description="Number of answers.")
    max_tokens: int | None = Field(
        None, ge=1, description="Longest answer in tokens; without it the model's default, or what fits."
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    stop: StopStrings | None = Field(
        None, max_length=MAX_STOP_STRINGS, description="End the answer before any of these texts."
    )
    stop_token_ids: list[Annotated[int, Field(ge=0, le=_INT64_MAX)]] | None = Field(
        None, max_length=64, description="End the answer at any of these tokens."
    )
    ignore_eos: bool | None = Field(None, description="Go on after the model's end token.")
    skip_special_tokens: bool | None = Field(None, description="Leave control tokens out of the text.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1, description="Draw from the likeliest that sum to this.")
    top_k: int | None = Field(
        None, ge=-1, le=_INT64_MAX, description="Draw from this many likeliest; 0 or -1: from all."
    )
    min_p: float | None = Field(None, ge=0, le=1, description="Least share of the likeliest's probability.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Against tokens already used.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="The same, for each use.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Above 1 avoids repetition.")
    seed: int | None = Field(None, ge=0, le=_INT64_MAX, description="Same seed, same answer.")
    logprobs: bool | None = Field(None, description="Report the log-probability of each token.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="And of this many likeliest tokens."
    )
    tools: list[Tool] | None = Field(None, max_length=128, description="Functions the model may call.")
    tool_choice: Any = Field(None, description="auto or none.")
    parallel_tool_calls: bool | None = Field(None, description="false ends the answer after one call.")
    response_format: ResponseFormat | None = Field(None, description="Only {type: text}.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=1024, description="Token id to a number added to its logit."
    )
    user: str | None = Field(None, description="Accepted and not used.")

    @field_validator("tool_choice")
    @classmethod
    def _check_tool_choice(cls, value: Any) -> Any:
        if value in (None, "auto", "none"):
            return value
        if value == "required" or isinstance(value, dict):
            raise ValueError("this service cannot force a tool call; use auto or none")
        raise ValueError("must be auto or none")

    @field_validator("response_format")
    @classmethod
    def _check_response_format(cls, value: ResponseFormat | None) -> ResponseFormat | None:
        if value is not None and value.type != "text":
            raise ValueError("this service answers in plain text only; use type text")
        return value

    @property
    def max_answer_tokens(self) -> int | None:
        """Longest answer asked for, under either of its names."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools as the client wrote them, empty when there are none or the model must not call any."""
        if not self.tools or self.tool_choice == "none":
            return []
        return [tool.as_written for tool in self.tools]
