"""`LLM`: a model, its tokenizer and an engine behind two calls, `generate` and `chat`.

Knows how names become models and text becomes ids; the work is the engine's. For one thread; a service uses
`AsyncEngine`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch

from telechat.checkpoint import load_model, read_config, read_generation_config, resolve_model
from telechat.device import CPU, memory_info, resolve_device
from telechat.engine.engine import Engine
from telechat.engine.intake import Intake
from telechat.engine.outputs import Completion, Delta, Keep, Kept, RequestOutput
from telechat.engine.plan import cache_bytes_per_token, default_batch_size
from telechat.engine.progress import Progress
from telechat.engine.request import Request
from telechat.engine.sampling_params import SamplingParams
from telechat.errors import ConfigError, PromptError, RequestError, TelechatError
from telechat.models import RopeMode, TeleChatConfig, TeleChatModel, count_parameters
from telechat.tokenizer import Tokenizer, check_fits, load_tokenizer

log = logging.getLogger(__name__)

Prompt = str | Sequence[int]
Message = Mapping[str, Any]

DEFAULT_MAX_PREFILL_TOKENS = 4096
# Below this, `dtype="auto"` computes in fp32 on the CPU: the weights are small enough that it costs little,
# and answers then do not depend on how a CPU rounds bf16.
_SMALL_MODEL_PARAMETERS = 500_000_000


class LLM:
    """A TeleChat model ready to generate.

    Args:
        model: folder, hub id, `demo`, or a model already loaded (then `tokenizer` is needed too).
        tokenizer: by default the one in the model's folder.
        device, dtype, attention: as in `telechat.load_model`; but small models compute in fp32 on a CPU by
            default.
        rope_mode: what a `max_model_len` beyond `training_seqlen` means, see `TeleChatModel`. `static`: one
            rotary table made for max_model_len, so that no answer depends on how long the text was when keys
            were cached.
        max_model_len: most tokens of prompt and answer together; default the model's `training_seqlen`.
        max_batch_size: requests that run at once; default 64, or as many of `max_model_len` as the free
            memory can hold.
        max_prefill_tokens: prompt tokens taken in per step.
        generation_config: contents of a `generation_config.json`; by default the folder's.

    Raises:
        CheckpointError, ConfigError, TokenizerError: the model cannot be used as it is.
    """

    def __init__(
        self,
        model: str | Path | TeleChatModel,
        tokenizer: Tokenizer | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        attention: str = "auto",
        rope_mode: RopeMode = "static",
        max_model_len: int | None = None,
        max_batch_size: int | None = None,
        max_prefill_tokens: int = DEFAULT_MAX_PREFILL_TOKENS,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (
            ("max_model_len", max_model_len),
            ("max_batch_size", max_batch_size),
            ("max_prefill_tokens", max_prefill_tokens),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        if isinstance(model, TeleChatModel):
            if tokenizer is None:
                raise ConfigError("A model that is already loaded needs its tokenizer too.")
            self.name = "telechat"
            self.model = model
        else:
            folder = resolve_model(model)
            self.name = str(model) if not Path(model).is_dir() else Path(model).resolve().name
            self.model = _load(
                folder,
                device=device,
                dtype=dtype,
                attention=attention,
                rope_mode=rope_mode,
                static_length=max_model_len,
            )
            tokenizer = tokenizer or load_tokenizer(folder)
            if generation_config is None:
                generation_config = read_generation_config(folder)
        self.tokenizer: Tokenizer = tokenizer
        self.generation_config = dict(generation_config or {})
        self.default_params = _default_params(self.generation_config)
        self.max_model_len = max_model_len or self.config.training_seqlen
        self.max_batch_size = max_batch_size or self._default_batch_size()
        self.max_prefill_tokens = max_prefill_tokens
        self.eos_token_ids = _eos_token_ids(
            self.tokenizer, self.generation_config, vocab_size=self.config.vocab_size
        )
        self._check_fit()
        self.intake = Intake(
            lambda skip: self.tokenizer.stream_decoder(skip_special_tokens=skip),
            vocab_size=self.config.vocab_size,
            eos_token_ids=self.eos_token_ids,
            max_model_len=self.max_model_len,
        )
        self._idle_engine: Engine | None = None

    @property
    def config(self) -> TeleChatConfig:
        """Shape of the model."""
        return self.model.config

    def _check_fit(self) -> None:
        check_fits(self.tokenizer, self.config.vocab_size)
        if self.model.rope_mode == "static" and self.model.static_length < self.max_model_len:
            raise ConfigError(
                f"max_model_len is {self.max_model_len}; the model's rotary table was made for "
                f"{self.model.static_length} tokens.",
                hint="Build the model with static_length of at least max_model_len.",
            )

    def _default_batch_size(self) -> int:
        memory = memory_info(self.model.device)
        size = default_batch_size(
            cache_bytes_per_token(self.config, self.model.dtype.itemsize),
            self.max_model_len,
            memory.free_bytes if memory else None,
        )
        log.info("up to %d requests of %d tokens run at once", size, self.max_model_len)
        return size

    def new_engine(self) -> Engine:
        """An engine with a cache of its own over this model."""
        return Engine(
            self.model,
            max_model_len=self.max_model_len,
            max_batch_size=self.max_batch_size,
            max_prefill_tokens=self.max_prefill_tokens,
        )

    @contextlib.contextmanager
    def _running(self, requests: Sequence[Request]) -> Iterator[Engine]:
        """An engine for these requests alone; whatever happens, none of them stays behind in it."""
        engine = self._idle_engine or self.new_engine()
        self._idle_engine = None
        for request in requests:
            engine.add(request)
        try:
            yield engine
        finally:
            for request in requests:
                engine.cancel(request)
            # The cache has grown to what is needed; the next call takes it over.
            self._idle_engine = engine

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; literal control strings in a text stay text.

        Raises:
            PromptError: it is empty.
        """
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not token_ids:
            raise PromptError("The prompt is empty.", hint="Give some text.")
        return token_ids

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        return_logits: Keep = None,
        return_scores: Keep = None,
    ) -> list[RequestOutput]:
        """Continue prompts; the batch is kept full until all are done.

        Args:
            prompts: a text, a list of token ids, or a list of either. Texts are taken as they are, without a
                chat format (see `chat`).
            params: one for all, or one per prompt; default `default_params`.
            progress: show a bar on stderr.
            return_logits, return_scores: keep each step's raw logits, or the scores sampled from (after
                penalties, temperature and truncation): "all", or the N highest.

        Returns:
            One output per prompt, in order.

        Raises:
            PromptError, RequestError: a prompt or parameter this model cannot take; nothing has been
                generated then.
        """
        outputs = dict(
            self.generate_each(
                prompts, params, progress=progress, return_logits=return_logits, return_scores=return_scores
            )
        )
        return [outputs[number] for number in range(len(outputs))]

    def generate_each(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        return_logits: Keep = None,
        return_scores: Keep = None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """As `generate`, but hands out (number of the prompt, its output) as soon as an output is complete.

        Prompts are checked now, before the iterator is asked for anything; closing it ends what still runs.
        """
        listed = _listed(prompts)
        shared = self.default_params if params is None else params
        each = [shared] * len(listed) if isinstance(shared, SamplingParams) else list(shared)
        if len(each) != len(listed):
            raise RequestError(
                f"{len(each)} sampling parameters were given for {len(listed)} prompts.", parameter="params"
            )
        groups: list[list[Request]] = []
        for number, (prompt, asked) in enumerate(zip(listed, each, strict=True)):
            try:
                groups.append(
                    self.intake.make_requests(
                        self.encode(prompt), asked, keep_logits=return_logits, keep_scores=return_scores
                    )
                )
            except TelechatError as error:
                if len(listed) > 1:
                    error.add_note(f"(prompt {number} of {len(listed)}, counted from 0)")
                raise
        return self._complete(groups, progress=progress)

    def _complete(
        self, groups: Sequence[Sequence[Request]], *, progress: bool
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Step until every group is done, handing each out when it is."""
        number_of = {request: number for number, group in enumerate(groups) for request in group}
        num_open = [len(group) for group in groups]
        with self._running(list(number_of)) as engine, Progress(len(number_of), enabled=progress) as bar:
            while engine.has_work:
                stepped = engine.step()
                ended = [number_of[request] for request in stepped if request.is_finished]
                bar.advance(num_tokens=len(stepped), num_requests=len(ended))
                for number in ended:
                    num_open[number] -= 1
                    if not num_open[number]:
                        yield number, _output(groups[number])

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: Literal[False] = False,
    ) -> RequestOutput: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: Literal[True],
    ) -> Iterator[Delta]: ...

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        stream: bool = False,
    ) -> RequestOutput | Iterator[Delta]:
        """Answer a conversation.

        Args:
            messages: `{"role", "content"}` dicts, the last one usually the user's.
            params: default `default_params`.
            tools: functions the model may call, OpenAI shape.
            stream: return the answer piece by piece; closing the iterator cancels the rest.

        Raises:
            PromptError: messages that this model's chat format cannot express, or too many of them.
        """
        token_ids = self.tokenizer.apply_chat_template(messages, tools)
        requests = self.intake.make_requests(token_ids, params or self.default_params)
        if stream:
            return self._stream(requests)
        [(_, output)] = self._complete([requests], progress=False)
        return output

    def _stream(self, requests: Sequence[Request]) -> Iterator[Delta]:
        with self._running(requests) as engine:
            while engine.has_work:
                for request in engine.step():
                    delta = request.take_delta()
                    if delta is not None:
                        yield delta
                    if request.error:
                        raise request.error


def _load(folder: Path, *, device: str, dtype: str, **settings: Any) -> TeleChatModel:
    is_on_cpu = resolve_device(device) == CPU
    if dtype == "auto" and is_on_cpu and count_parameters(read_config(folder)) <= _SMALL_MODEL_PARAMETERS:
        dtype = "float32"
    return load_model(folder, device=device, dtype=dtype, **settings)


def _default_params(generation_config: Mapping[str, Any]) -> SamplingParams:
    """Sampling as the folder's authors set it; a value out of range is the file's fault, not a request's."""
    try:
        return SamplingParams.from_generation_config(generation_config)
    except RequestError as error:
        raise ConfigError(f"generation_config.json: {error.message}", hint=error.hint) from error


def _eos_token_ids(
    tokenizer: Tokenizer, generation_config: Mapping[str, Any], *, vocab_size: int
) -> tuple[int, ...]:
    """The tokenizer's end token, and those of the generation config, which may be one or a list."""
    configured = generation_config.get("eos_token_id")
    ids = [] if configured is None else configured if isinstance(configured, list) else [configured]
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise ConfigError(
                f"generation_config.json has eos_token_id {configured!r}; "
                f"this model has ids 0 to {vocab_size - 1}."
            )
    return tuple(dict.fromkeys([tokenizer.special.eos, *ids]))


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A single prompt becomes a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    listed = list(prompts)
    if listed and all(isinstance(item, int) for item in listed):
        return [cast("list[int]", listed)]
    return cast("list[Prompt]", listed)


def _output(requests: Sequence[Request]) -> RequestOutput:
    for request in requests:
        if request.error:
            raise request.error
    return RequestOutput(requests[0].prompt_token_ids, [_completion(request) for request in requests])


def _completion(request: Request) -> Completion:
    assert request.finish_reason is not None
    return Completion(
        text=request.text,
        token_ids=request.token_ids,
        finish_reason=request.finish_reason,
        logprobs=request.logprobs if request.params.logprobs is not None else None,
        stop_reason=request.stop_reason,
        logits=_kept(request.kept_logits, request.keep_logits),
        scores=_kept(request.kept_scores, request.keep_scores),
    )


def _kept(steps: list[Any], keep: Keep) -> Kept | None:
    if keep is None:
        return None
    return torch.stack(steps) if keep == "all" else steps
