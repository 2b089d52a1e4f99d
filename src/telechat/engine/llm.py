"""`LLM`: a model, its tokenizer and an engine behind two calls, `generate` and `chat`.

Knows how names become models and text becomes ids; the work is the engine's. For one thread; a service uses
`AsyncEngine`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

from telechat.engine.adapters import DEFAULT_MAX_ADAPTERS, DEFAULT_MAX_RANK, AdapterTable
from telechat.engine.driving import complete, stream_deltas
from telechat.engine.engine import Engine
from telechat.engine.loading import (
    KvCacheDtype,
    check_positive,
    check_rotary_length,
    default_batch_tokens,
    default_params,
    eos_token_ids,
    plan_for,
)
from telechat.engine.opening import open_model
from telechat.engine.outputs import Delta, EmbeddingOutput, EngineStats, Keep, Pooling, RequestOutput
from telechat.engine.plan import DEFAULT_MAX_BATCH_SIZE
from telechat.engine.prompts import Message, Prompt, as_list, numbered, params_of_each
from telechat.engine.proposers import open_speculation
from telechat.engine.request import Request
from telechat.engine.results import embedding_output, request_output
from telechat.engine.sampling_params import SamplingParams, with_fields
from telechat.engine.text_intake import text_intake
from telechat.errors import PromptError, TelechatError
from telechat.models import RopeMode, TeleChatConfig, TeleChatModel
from telechat.parallel.sharding import Layout
from telechat.tokenizer import Tokenizer, check_fits


class LLM:
    """A TeleChat model ready to generate.

    Args:
        model: folder, hub id, `demo`, or a model already loaded (then `tokenizer` is needed too).
        tokenizer: by default the one in the model's folder.
        device, dtype, attention: as in `telechat.load_model`; but by default small models compute in fp32 on
            a CPU, and those in bf16 stay so wherever our kernels multiply it.
        rope_mode: what a `max_model_len` beyond `training_seqlen` means, see `TeleChatModel`. `static`: one
            rotary table made for max_model_len, so that no answer depends on how long the text was when keys
            were cached.
        max_model_len: most tokens of prompt and answer together; default the model's `training_seqlen`.
        max_batch_size: requests that run at once.
        max_batch_tokens: tokens computed in one step; a longer prompt is computed in pieces. Default 512 on a
            CPU, 2048 elsewhere.
        block_size: tokens of a block of the cache: 16, 32, 64, 96 or 128; default by device.
        num_blocks: blocks of the cache; default as many as are useful and fit.
        memory_limit: most bytes that this process may hold on the device, weights included; the cache is made
            to fit. Default a share of what is free.
        cache_memory: bytes of the cache, on accelerators those of each device; less where less is free.
        kv_cache_dtype: `auto` is the model's; `int8` takes half the memory of bf16, with small errors; `int4`
            takes a third, with larger ones.
        prefix_caching: prompts that begin alike share what was computed for the beginning.
        deterministic: an answer does not depend on what else is in the batch, to the last bit: one kernel
            per layer whatever the batch. Default: for the demo model only.
        quantize, group_size: round the weights while they are read, as `telechat.load_model` does.
        tp: processes (on accelerators, devices) that share the heads and the inner widths of every layer.
        ep: the same for the experts of a mixture; the ranks are as many as the larger of the two.
        master_port: where several ranks meet; 0 takes a free port.
        bind_cpu: keep each of several ranks to the cores of one NUMA node, where there are several nodes.
        speculate: guess tokens that the model then checks several at a time: `prompt-lookup` from the text
            itself, or a small model with the same tokens (folder, hub id or loaded). Answers stay the same.
        num_draft_tokens: with speculate, most guesses for one request in a step; default 4.
        adapters: low-rank adapters by the names that requests ask for them by: folders in PEFT's format.
        max_loras: adapters in memory at once, those loaded later included.
        max_lora_rank: highest rank of any.
        reserved_loras: adapters of that rank, to be loaded later, that the cache leaves memory for.
        generation_config: contents of a `generation_config.json`; by default the folder's.

    Raises:
        CheckpointError, ConfigError, TokenizerError: the model cannot be used as it is, or the cache cannot
            hold `max_model_len` tokens.
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
        max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
        max_batch_tokens: int | None = None,
        block_size: int | None = None,
        num_blocks: int | None = None,
        memory_limit: int | None = None,
        cache_memory: int | None = None,
        kv_cache_dtype: KvCacheDtype = "auto",
        prefix_caching: bool = True,
        deterministic: bool | None = None,
        quantize: Literal["int8", "int4"] | None = None,
        group_size: int | None = None,
        tp: int = 1,
        ep: int = 1,
        master_port: int = 0,
        bind_cpu: bool = True,
        speculate: str | Path | TeleChatModel | None = None,
        num_draft_tokens: int | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        max_loras: int = DEFAULT_MAX_ADAPTERS,
        max_lora_rank: int = DEFAULT_MAX_RANK,
        reserved_loras: int = 0,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        check_positive(
            max_model_len=max_model_len,
            max_batch_size=max_batch_size,
            max_batch_tokens=max_batch_tokens,
            memory_limit=memory_limit,
            cache_memory=cache_memory,
            max_loras=max_loras,
            max_lora_rank=max_lora_rank,
        )
        place: dict[str, Any] = {"device": device, "dtype": dtype, "attention": attention}
        place["kv_cache_dtype"] = kv_cache_dtype
        opened = open_model(
            model,
            tokenizer,
            generation_config,
            **place,
            deterministic=deterministic,
            layout=Layout(tp=tp, ep=ep),
            master_port=master_port,
            bind_cpu=bind_cpu,
            rope_mode=rope_mode,
            static_length=max_model_len,
            quantize=quantize,
            group_size=group_size,
        )
        self.name = opened.name
        self.model = opened.model
        self.tokenizer = opened.tokenizer
        self.generation_config = opened.generation_config
        self.deterministic = opened.is_deterministic
        self.executor = opened.executor
        # Ranks in other processes end with the engine, not only with this process.
        resources = ExitStack()
        resources.callback(self.executor.close)
        self._close = weakref.finalize(self, resources.close)
        self.max_model_len = max_model_len or self.config.training_seqlen
        self.max_batch_size = max_batch_size
        self.max_batch_tokens = max_batch_tokens or default_batch_tokens(self.executor.device)
        self.prefix_caching = prefix_caching
        self.adapters = AdapterTable(self.executor, max_adapters=max_loras, max_rank=max_lora_rank)
        try:
            self._prepare()
            self.adapters.load_all(adapters or {})
            self._speculation = open_speculation(
                speculate, num_draft_tokens, target=opened, max_model_len=self.max_model_len, **place
            )
            if self._speculation is not None:
                resources.callback(self._speculation.close)
            self.cache_plan = plan_for(
                self.executor,
                self._speculation,
                max_model_len=self.max_model_len,
                max_batch_size=max_batch_size,
                max_batch_tokens=self.max_batch_tokens,
                block_size=block_size,
                num_blocks=num_blocks,
                memory_limit=memory_limit,
                cache_bytes=cache_memory,
                reserved_bytes=self.adapters.bytes_to_reserve(reserved_loras),
            )
            if memory_limit is not None:
                self.adapters.memory_left = self.cache_plan.spare_bytes
        except TelechatError:
            self.close()
            raise

    def _prepare(self) -> None:
        """What requests need of tokenizer and generation config, checked against the model."""
        vocab_size = self.config.vocab_size
        check_fits(self.tokenizer, vocab_size)
        check_rotary_length(self.executor, self.max_model_len)
        self.default_params = default_params(self.generation_config)
        self.eos_token_ids = eos_token_ids(self.tokenizer, self.generation_config, vocab_size=vocab_size)
        self.intake = text_intake(
            self.tokenizer,
            vocab_size=vocab_size,
            eos_token_ids=self.eos_token_ids,
            max_model_len=self.max_model_len,
            adapter_number=self.adapters.number_of,
        )

    @property
    def config(self) -> TeleChatConfig:
        """Shape of the model."""
        return self.executor.config

    def close(self) -> None:
        """Give caches back and end other ranks; happens by itself when nobody refers to this any more."""
        self._close()

    @cached_property
    def engine(self) -> Engine:
        """The one engine over this model, made when first asked for. One thread at a time may use it."""
        blocks = {"num_blocks": self.cache_plan.num_blocks, "block_size": self.cache_plan.block_size}
        return Engine(
            self.executor,
            **blocks,
            max_batch_size=self.max_batch_size,
            max_batch_tokens=self.max_batch_tokens,
            prefix_caching=self.prefix_caching,
            proposer=None if self._speculation is None else self._speculation.proposer(**blocks),
            adapters=self.adapters,
        )

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Let requests ask for the adapter in a folder by `name`; as `AdapterTable.load`."""
        self.engine.load_adapter(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Take an adapter's name away; requests that have begun keep it. Errors as `AdapterTable.unload`."""
        self.engine.unload_adapter(name)

    def stats(self) -> EngineStats:
        """Where the engine stands and what it has done so far."""
        return self.engine.stats()

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
        adapter: str | None = None,
        **sampling: Any,
    ) -> list[RequestOutput]:
        """Continue prompts; the batch is kept full until all are done.

        Args:
            prompts: a text, a list of token ids, or a list of either. Texts are taken as they are, without a
                chat format (see `chat`).
            params: one for all, or one per prompt; default `default_params`.
            progress: show a bar on stderr.
            return_logits, return_scores: keep each step's raw logits, or the scores sampled from (after
                penalties, temperature and truncation): "all", or the N highest.
            adapter: name of the one to answer with; None is the model alone.
            sampling: fields of `SamplingParams` that win over `params`: `temperature=0`.

        Returns:
            One output per prompt, in order.

        Raises:
            PromptError, RequestError: a prompt or parameter this model cannot take; nothing has been
                generated then.
        """
        each = self.generate_each(
            prompts,
            params,
            progress=progress,
            return_logits=return_logits,
            return_scores=return_scores,
            adapter=adapter,
            **sampling,
        )
        return [output for _, output in sorted(each, key=lambda item: item[0])]

    def generate_each(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        return_logits: Keep = None,
        return_scores: Keep = None,
        adapter: str | None = None,
        **sampling: Any,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """As `generate`, but hands out (number of the prompt, its output) as soon as an output is complete.

        Prompts are checked now, before the iterator is asked for anything; closing it ends what still runs.
        """
        listed = as_list(prompts)
        each = params_of_each(len(listed), self.default_params if params is None else params, sampling)

        def make(number: int) -> list[Request]:
            ids = self.encode(listed[number])
            return self.intake.make_requests(
                ids, each[number], keep_logits=return_logits, keep_scores=return_scores, adapter=adapter
            )

        return complete(self.engine, numbered(make, len(listed)), request_output, progress=progress)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling = "mean",
        normalize: bool = False,
        adapter: str | None = None,
        progress: bool = False,
    ) -> list[EmbeddingOutput]:
        """One vector per prompt, from the model's final hidden states.

        Args:
            pooling: `mean` of all tokens, or the `last` one.
            normalize: scale each vector to length 1.
            adapter: as in `generate`.

        Raises:
            PromptError, RequestError: a prompt or pooling this model cannot take; nothing was computed then.
        """
        listed = as_list(prompts)

        def make(number: int) -> list[Request]:
            ids = self.encode(listed[number])
            return [self.intake.make_embedding(ids, pooling, adapter=adapter)]

        def finish(requests: Sequence[Request]) -> EmbeddingOutput:
            return embedding_output(requests[0], normalize=normalize)

        outputs = dict(complete(self.engine, numbered(make, len(listed)), finish, progress=progress))
        return [outputs[number] for number in range(len(outputs))]

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        adapter: str | None = None,
        stream: Literal[False] = False,
        **sampling: Any,
    ) -> RequestOutput: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        adapter: str | None = None,
        stream: Literal[True],
        **sampling: Any,
    ) -> Iterator[Delta]: ...

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Message] | None = None,
        adapter: str | None = None,
        stream: bool = False,
        **sampling: Any,
    ) -> RequestOutput | Iterator[Delta]:
        """Answer a conversation.

        Args:
            messages: `{"role", "content"}` dicts, the last one usually the user's.
            params: default `default_params`.
            tools: functions the model may call, OpenAI shape.
            adapter: as for `generate`.
            stream: return the answer piece by piece; closing the iterator cancels the rest.
            sampling: fields of `SamplingParams` that win over `params`: `temperature=0`.

        Raises:
            PromptError: messages that this model's chat format cannot express, or too many of them.
            RequestError: a parameter that this model cannot take, or that there is none of.
        """
        token_ids = self.tokenizer.apply_chat_template(messages, tools)
        params = with_fields(params or self.default_params, sampling)
        requests = self.intake.make_requests(token_ids, params, adapter=adapter)
        if stream:
            return stream_deltas(self.engine, requests)
        [(_, output)] = complete(self.engine, [requests], request_output)
        return output
