"""The body of `POST /v1/completions`."""

from __future__ import annotations

from pydantic import Field, field_validator

from telechat.serve.openai.fields import MAX_TOP_LOGPROBS, GuidedFields, SamplingFields, StreamFields
from telechat.serve.openai.prompts import Prompts


class CompletionRequest(SamplingFields, GuidedFields, StreamFields):
    """Body of `POST /v1/completions`."""

    prompt: Prompts = Field(description="A text, a list of token ids, or a list of either.")
    n: int | None = Field(None, ge=1, description="Number of answers to each prompt.")
    best_of: int | None = Field(None, ge=1, description="Only the same as n.")
    max_tokens: int | None = Field(
        None, ge=0, description="Longest answer in tokens; without it the model's default, or what fits."
    )
    echo: bool | None = Field(None, description="Give the prompt back before the answer.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="Report the log-probability of each token and of this many likeliest; "
        "with echo, of the prompt's as well.",
    )
    suffix: str | None = Field(None, description="Not available: the model writes forward only.")

    @field_validator("suffix")
    @classmethod
    def _check_suffix(cls, value: str | None) -> str | None:
        if value:
            raise ValueError("this model continues a text; it does not fill gaps")
        return value
