"""Fields that several requests of the OpenAI routes share, with their types and ranges.

Types are strict (`"0.5"` is no number); unknown fields are ignored, as OpenAI's clients expect. Fields whose
effect this service does not have are refused when they ask for that effect, never swallowed. Pydantic ends
here and in the other `…_fields` modules: behind them are plain values.
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
    model_validator,
)

MAX_STOP_STRINGS = 16
MAX_TOP_LOGPROBS = 20
INT64_MAX = 2**63 - 1


class Strict(BaseModel):
    """Base of all request models."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", frozen=True)


class Written(Strict):
    """An object that is also wanted exactly as the client wrote it, with fields that we do not know."""

    _written: Any = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _keep_as_written(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        read = handler(value)
        read._written = value
        return read

    @property
    def as_written(self) -> dict[str, Any]:
        """The object, exactly as sent."""
        written: dict[str, Any] = self._written
        return written


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
TokenId = Annotated[int, Field(ge=0, le=INT64_MAX)]


class ModelField(Strict):
    """Which model is asked."""

    model: str | None = Field(
        None, description="Name of the model as in /v1/models; without it, the one served."
    )


class SamplingFields(ModelField):
    """How the answer is drawn. What is left out is as the model's `generation_config.json` says."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1, description="Draw from the likeliest that sum to this.")
    top_k: int | None = Field(
        None, ge=-1, le=INT64_MAX, description="Draw from this many likeliest; 0 or -1: from all."
    )
    min_p: float | None = Field(None, ge=0, le=1, description="Least share of the likeliest's probability.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Against tokens already used.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="The same, for each use.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Above 1 avoids repetition.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=1024, description="Token id to a number added to its logit."
    )
    seed: int | None = Field(None, ge=0, le=INT64_MAX, description="Same seed, same answer.")
    stop: StopStrings | None = Field(
        None, max_length=MAX_STOP_STRINGS, description="End the answer before any of these texts."
    )
    stop_token_ids: list[TokenId] | None = Field(
        None, max_length=64, description="End the answer at any of these tokens."
    )
    min_tokens: int | None = Field(
        None, ge=0, le=INT64_MAX, description="No end token before so many tokens."
    )
    ignore_eos: bool | None = Field(None, description="Go on after the model's end token.")
    skip_special_tokens: bool | None = Field(None, description="Leave control tokens out of the text.")


def _without_nothing(value: Any) -> Any:
    """Clients that dump a whole record send null or false for what they do not ask for."""
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if item is not None and item is not False}
    return value


class StructuredFields(Strict):
    """What an answer must look like, as vLLM's clients write it; one of the fields."""

    model_config = ConfigDict(extra="forbid")

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="A JSON schema.")
    json_object: bool | None = Field(None, description="Any JSON object.")
    regex: str | None = Field(None, min_length=1, description="A regular expression.")
    choice: list[str] | None = Field(None, min_length=1, description="One of these texts.")
    grammar: str | None = Field(None, min_length=1, description="A grammar in llguidance's form of Lark.")


class GuidedFields(Strict):
    """Extensions of other servers that say what an answer must look like."""

    structured_outputs: Annotated[StructuredFields, BeforeValidator(_without_nothing)] | None = Field(
        None, description="What the answer must look like: json, json_object, regex, choice or grammar."
    )
    guided_json: dict[str, Any] | str | None = Field(None, description="The older form of json in it.")
    guided_regex: str | None = Field(None, min_length=1, description="The older form of regex.")
    guided_choice: list[str] | None = Field(None, min_length=1, description="The older form of choice.")
    guided_grammar: str | None = Field(None, min_length=1, description="The older form of grammar.")


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool | None = Field(None, description="Send one more chunk that holds `usage`.")


class StreamFields(Strict):
    """Whether and how an answer is streamed."""

    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="{include_usage: true} counts tokens.")
    user: str | None = Field(None, description="Accepted and not used.")

    @property
    def wants_usage(self) -> bool:
        """The stream shall end with a chunk that counts tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class FunctionSpec(Strict):
    """A function the model may call."""

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments.")
    strict: bool | None = Field(
        None, description="A forced call follows the schema wholly, or the request is refused."
    )


class Tool(Written):
    """An entry of `tools`. The model is shown what the client wrote."""

    type: Literal["function"]
    function: FunctionSpec
