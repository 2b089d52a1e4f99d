"""A stand-in for the engine: answers are written by the test, token by token.

The last user message chooses what happens: a key of `FakeEngine.scripts` plays that script, anything else is
answered with the text "你好, world".
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from telechat.engine.grammar import GrammarCompiler
from telechat.engine.outputs import Delta, EngineStats, Pooling, TokenLogprob
from telechat.engine.sampling_params import SamplingParams, StructuredOutputs
from telechat.errors import PromptError, RequestError

# A step of a script: text of a delta, a pause in seconds, or an error to raise.
Step = str | float | Exception
DEFAULT_ANSWER = ("你", "好", ", ", "wor", "ld")
MAX_MODEL_LEN = 4000


class FakeTokenizer:
    """One id per character; remembers the conversations it was given."""

    vocab_size = 0x110000
    control_ids = frozenset({2})

    def __init__(self) -> None:
        self.messages: Sequence[Mapping[str, Any]] = ()
        self.tools: Sequence[Mapping[str, Any]] | None = None

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        self.messages, self.tools = messages, tools
        text = "".join(message["content"] for message in messages)
        text += "" if add_generation_prompt else "~"
        if "refuse me" in text:
            raise PromptError("Message 0 cannot be expressed.")
        return [ord(character) for character in text]

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """`<_end>` is token 2 where control tokens are parsed."""
        self.messages = [{"content": text}]
        text = text.replace("<_end>", "\x02") if parse_special else text
        return [ord(character) for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(chr(token_id) for token_id in ids)

    def token_to_id(self, token: str) -> int | None:
        return 2 if token == "<_end>" else None

    def id_to_token(self, token_id: int) -> str | None:
        return "<_end>" if token_id == 2 else chr(token_id)

    def token_bytes(self, token_id: int) -> bytes | None:
        return None if token_id == 2 else chr(token_id).encode()


class ByteTokenizer:
    """One token per byte, and an end token: all that grammars need to be compiled."""

    dropped_space_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes | None:
        return bytes([token_id]) if token_id < 256 else None

    def id_to_token(self, token_id: int) -> str | None:
        return "<_end>" if token_id == 256 else None


class FakeIntake:
    """Compiles grammars as the engine does; remembers the last."""

    def __init__(self) -> None:
        tokenizer: Any = ByteTokenizer()
        self._compile = GrammarCompiler(tokenizer, vocab_size=257, eos_token_ids=[256])
        self.checked: StructuredOutputs | None = None

    def check_grammar(self, asked: StructuredOutputs) -> None:
        self.checked = asked
        self._compile(asked).masks()

    def accepts(self, asked: StructuredOutputs, text: str) -> bool:
        """Whether `text` is a whole answer to `asked`."""
        tokens = [*text.encode(), 256]
        return self._compile(asked).num_allowed(tokens) == len(tokens)


@dataclass
class FakeLLM:
    """What the service knows of a model."""

    name: str = "fake"
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    intake: FakeIntake = field(default_factory=FakeIntake)
    max_model_len: int = MAX_MODEL_LEN
    default_params: SamplingParams = field(
        default_factory=lambda: SamplingParams(temperature=0.0, repetition_penalty=1.03, top_k=5)
    )


class FakeStream:
    """Plays a script for each of the answers in turn."""

    def __init__(
        self, engine: FakeEngine, prompt_ids: list[int], steps: Sequence[Step], params: SamplingParams
    ) -> None:
        self._engine = engine
        self._prompt_ids = prompt_ids
        self._deltas = self._play(steps, params)
        engine.num_open += 1

    async def _play(self, steps: Sequence[Step], params: SamplingParams) -> Any:
        for index in range(params.n):
            first: dict[str, Any] = {"num_cached_tokens": self._engine.num_cached_tokens}
            if params.prompt_logprobs is not None:
                first["prompt_logprobs"] = [
                    None,
                    *(TokenLogprob(token_id, -1.0, ((0x41, -0.25),)) for token_id in self._prompt_ids[1:]),
                ]
            for step in steps:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, Exception):
                    raise step
                else:
                    logprobs = None
                    if params.logprobs is not None:
                        logprobs = [
                            TokenLogprob(ord(step[0]), -0.5, ((ord(step[0]), -0.5), (0x41, float("-inf"))))
                        ]
                    yield Delta(step, [ord(step[0])], index=index, logprobs=logprobs, **first)
                    first = {}
            yield Delta("", [2], self._engine.finish_reason, index=index, **first)

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> Delta:
        delta: Delta = await anext(self._deltas)
        return delta

    async def aclose(self) -> None:
        await self._deltas.aclose()
        self._engine.num_open -= 1


class FakeEngine:
    """Fits `telechat.serve.contract.ServiceEngine`.

    Attributes:
        scripts: last user message, or the whole prompt -> steps of the answer.
        params, tenant, priority, prompt_ids, adapter: of the last request.
        folders: adapters by name.
        num_open: streams started and not closed.
        num_cached_tokens: prompt tokens said to be found in the cache.
        stats, num_restarts: what a real engine tells of itself.
        is_alive: False as of an engine that has died.
    """

    def __init__(self) -> None:
        self.is_alive = True
        self.llm = FakeLLM()
        self.scripts: dict[str, Sequence[Step]] = {}
        self.params: SamplingParams | None = None
        self.tenant = ""
        self.priority = 0
        self.adapter: str | None = None
        self.folders: dict[str, str] = {}
        self.prompt_ids: list[int] = []
        self.refusal: Exception | None = None
        self.finish_reason: Any = "stop"
        self.num_open = 0
        self.num_cached_tokens: int | None = None
        self.stats: EngineStats | None = None
        self.num_restarts = 0

    @property
    def replicas(self) -> tuple[FakeEngine, ...]:
        return (self,)

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self.folders)

    async def load_adapter(self, name: str, folder: str | Path) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.folders[name] = str(folder)

    async def unload_adapter(self, name: str) -> None:
        if self.folders.pop(name, None) is None:
            raise RequestError(f"There is no adapter {name!r}.", parameter="model")

    def stream(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        tenant: str = "",
        priority: int = 0,
        adapter: str | None = None,
    ) -> FakeStream:
        self.adapter = adapter
        self.params, self.tenant, self.priority, self.prompt_ids = params, tenant, priority, prompt_ids
        if self.refusal is not None:
            raise self.refusal
        if max(prompt_ids, default=0) >= 0x110000:  # as the engine refuses ids outside its vocabulary
            raise PromptError("An id of the prompt is outside the vocabulary.")
        prompt = "".join(map(chr, prompt_ids))
        messages = self.llm.tokenizer.messages
        question = messages[-1]["content"] if messages and prompt not in self.scripts else prompt
        return FakeStream(self, prompt_ids, self.scripts.get(question, DEFAULT_ANSWER), params)

    async def embed(
        self,
        prompt_ids: list[int],
        pooling: Pooling = "mean",
        *,
        normalize: bool = False,
        tenant: str = "",
        adapter: str | None = None,
    ) -> array[float]:
        """(number of tokens, 0) for the mean, (0, last id) for the last."""
        self.tenant, self.adapter = tenant, adapter
        if self.refusal is not None:
            raise self.refusal
        if not prompt_ids:
            raise PromptError("The prompt is empty.")
        vector = (float(len(prompt_ids)), 0.0) if pooling == "mean" else (0.0, float(prompt_ids[-1]))
        length = sum(vector) if normalize else 1.0
        return array("f", [number / length for number in vector])

    def close(self) -> None:
        pass
