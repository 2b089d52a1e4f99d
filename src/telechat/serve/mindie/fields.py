"""The fields of MindIE's requests, with their types and ranges.

Types are strict; unknown fields are ignored, as MindIE does. `typical_p`, `watermark` and `batch_size` are
checked and change nothing: MindIE says the same of them. Knows nothing of how answers are made.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

DEFAULT_NEW_TOKENS = 20
LAST_PRIORITY = 5
_INT32_MAX = 2**31 - 1
_UINT64_MAX = 2**64 - 1
_MAX_IDS = 1 << 20


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", frozen=True)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), Field(max_length=1024)]
TokenId = Annotated[int, Field(ge=0, le=_INT32_MAX)]


class Parameters(_Form):
    """`parameters` of the TGI, Triton and native forms."""

    do_sample: bool | None = Field(None, description="Without it, the other sampling parameters decide.")
    max_new_tokens: int | None = Field(None, ge=1, le=_INT32_MAX, description="Default 20.")
    temperature: float | None = Field(None, gt=0, description="Default 1.0.")
    top_k: int | None = Field(None, ge=0, le=_INT32_MAX, description="0 is off, the default.")
    top_p: float | None = Field(None, gt=0, le=1, description="Default 1.0, which is off.")
    typical_p: float | None = Field(None, gt=0, le=1, description="Has no effect.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Default 1.0.")
    seed: int | None = Field(None, ge=0, le=_UINT64_MAX, description="Drawn when it is left out.")
    stop: Stop | None = Field(None, description="End the answer before any of these texts.")
    details: bool | None = Field(None, description="Report tokens and why the answer ended.")
    watermark: bool | None = Field(None, description="Has no effect.")
    priority: int | None = Field(None, ge=1, le=LAST_PRIORITY, description="1 is first, 5 the default.")
    timeout: int | None = Field(None, ge=1, le=65535, description="Seconds until the request is given up.")


class TgiParameters(Parameters):
    """`parameters` of the TGI form."""

    return_full_text: bool | None = Field(None, description="Begin the answer with `inputs`.")
    truncate: int | None = Field(
        None, ge=0, le=_INT32_MAX, description="Keep this many tokens of the end of `inputs`; 0 is all."
    )
    decoder_input_details: bool | None = Field(
        None, description="Report the tokens of `inputs`; not in streams."
    )
    stop_sequences: Stop | None = Field(None, description="Another name of `stop`.")


class TritonParameters(Parameters):
    """`parameters` of the Triton form."""

    batch_size: int | None = Field(None, ge=1, le=_INT32_MAX, description="Has no effect.")
    perf_stat: bool | None = Field(None, description="Report the time each token took.")


class TgiRequest(_Form):
    """A body with `inputs`."""

    inputs: str = Field(min_length=1, description="The whole prompt; names of control tokens mean these.")
    parameters: TgiParameters | None = None
    stream: bool | None = None


class InferRequest(_Form):
    """Body of `/infer`."""

    inputs: str = Field(min_length=1, description="The whole prompt; names of control tokens mean these.")
    parameters: Parameters | None = None
    stream: bool | None = None


class InferTokenRequest(_Form):
    """Body of `/infer_token`."""

    input_id: list[TokenId] = Field(min_length=1, max_length=_MAX_IDS, description="Ids of the prompt.")
    parameters: Parameters | None = None
    stream: bool | None = None


class VllmRequest(_Form):
    """A body with `prompt`."""

    prompt: str = Field(min_length=1, description="The whole prompt; names of control tokens mean these.")
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=_INT32_MAX, description="Default: maxIterTimes.")
    temperature: float | None = Field(None, ge=0, description="0 is greedy. Default 1.0.")
    top_k: int | None = Field(None, ge=-1, le=_INT32_MAX, description="0 and -1 are off, the default.")
    top_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, le=_UINT64_MAX)
    stop: Stop | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=1024)
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = Field(None, description="Default true.")
    ignore_eos: bool | None = None
    n: int | None = Field(None, ge=1, description="Number of answers.")
    best_of: int | None = Field(None, ge=1, description="Answers to choose the `n` likeliest from.")
    stream: bool | None = None


class ChatWebMessage(_Form):
    """One message; `bot`, the original's word, means `assistant`."""

    role: Literal["system", "user", "assistant", "bot"]
    content: str


class ChatWebRequest(_Form):
    """A body with `messages`. `question` and `history` are ignored, as in the original."""

    messages: list[ChatWebMessage] = Field(min_length=1)
    do_sample: bool | None = Field(None, description="Default false.")
    temperature: float | None = Field(None, gt=0, description="Default 1.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Default 1.")
    top_p: float | None = Field(None, gt=0, le=1, description="Default 1.")
    top_k: int | None = Field(None, ge=0, le=_INT32_MAX, description="Default 1.")
    max_length: int | None = Field(
        None, ge=1, le=_INT32_MAX, description="Prompt and answer together, in tokens. Default 512."
    )
    stream: bool | None = None


class TritonRequest(_Form):
    """Body of `/v2/models/{name}/generate`."""

    id: str | None = Field(None, max_length=1000, description="Comes back in the answer.")
    text_input: str = Field(min_length=1)
    parameters: TritonParameters | None = None


class TritonTensor(_Form):
    """A tensor of token ids."""

    name: str
    shape: list[Annotated[int, Field(ge=0)]] | None = None
    datatype: Literal["UINT32", "UINT64", "INT32", "INT64"]
    data: list[TokenId] = Field(min_length=1, max_length=_MAX_IDS)

    @model_validator(mode="after")
    def _check_shape(self) -> TritonTensor:
        if self.shape is not None and self.shape not in ([len(self.data)], [1, len(self.data)]):
            raise ValueError(f"shape is {self.shape}; for this data it must be [1, {len(self.data)}]")
        return self


class TritonOutput(_Form):
    """The name of the tensor that comes back."""

    name: str


class TritonInferRequest(_Form):
    """Body of `/v2/models/{name}/infer`."""

    id: str | None = Field(None, max_length=1000)
    inputs: list[TritonTensor] = Field(min_length=1, max_length=1)
    outputs: list[TritonOutput] | None = Field(None, max_length=1)
    parameters: TritonParameters | None = None
