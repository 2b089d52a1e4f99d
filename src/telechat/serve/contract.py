"""What the service needs from an engine, and nothing more.

`telechat.engine.AsyncEngine` fits; so does the small fake of the tests.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from telechat.engine.outputs import Delta, EngineStats, Pooling
from telechat.engine.sampling_params import SamplingParams, StructuredOutputs


class ServiceTokenizer(Protocol):
    """Conversations to token ids, ids to text."""

    @property
    def vocab_size(self) -> int: ...
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def token_to_id(self, token: str) -> int | None:
        """Id of a token by its name, None when the vocabulary has none."""
        ...

    def id_to_token(self, token_id: int) -> str | None: ...
    def token_bytes(self, token_id: int) -> bytes | None:
        """What a token adds to a text, None for one that is no text."""
        ...

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Ids of a text as it is; with `parse_special`, names of control tokens become these tokens."""
        ...

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of the control tokens."""
        ...


class ServiceIntake(Protocol):
    """Checks what the engine would refuse."""

    def check_grammar(self, asked: StructuredOutputs) -> None:
        """Make sure that an answer to `asked` can begin. May take a while; any thread may call it.

        Raises:
            RequestError: it cannot.
        """
        ...


class ServiceModel(Protocol):
    """A model ready to answer (`telechat.engine.LLM`)."""

    @property
    def name(self) -> str: ...
    @property
    def tokenizer(self) -> ServiceTokenizer: ...
    @property
    def max_model_len(self) -> int:
        """Longest prompt plus answer, in tokens."""
        ...

    @property
    def default_params(self) -> SamplingParams:
        """Sampling as the model's folder sets it."""
        ...

    @property
    def intake(self) -> ServiceIntake: ...


class DeltaStream(Protocol):
    """The answers to one prompt as they grow, told apart by `Delta.index`."""

    def __aiter__(self) -> AsyncIterator[Delta]: ...
    async def aclose(self) -> None:
        """End what is still running."""
        ...


class EngineView(Protocol):
    """What an engine shows of itself to those who watch it."""

    @property
    def is_alive(self) -> bool: ...
    @property
    def num_restarts(self) -> int:
        """How often its process died and was started again."""
        ...

    @property
    def stats(self) -> EngineStats | None:
        """As of its last step; None before the first."""
        ...


class ServiceEngine(Protocol):
    """Answers many prompts at once."""

    @property
    def replicas(self) -> Sequence[EngineView]:
        """The engines behind it: itself, or each of several that share the work."""
        ...

    @property
    def llm(self) -> ServiceModel: ...
    @property
    def is_alive(self) -> bool:
        """Requests are taken and answered."""
        ...

    @property
    def adapters(self) -> Sequence[str]:
        """Names of the adapters that requests may ask for."""
        ...

    async def load_adapter(self, name: str, folder: str | Path) -> None:
        """Read an adapter folder; requests may ask for it by `name` from now on.

        Raises:
            ConfigError, CheckpointError: the name is taken, there is no room, or the adapter cannot be used.
            TelechatError: as `stream`.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Take an adapter's name away; requests that have begun keep the adapter.

        Raises:
            RequestError: there is none of this name.
            TelechatError: as `stream`.
        """
        ...

    def stream(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        tenant: str = "",
        priority: int = 0,
        adapter: str | None = None,
    ) -> DeltaStream:
        """Start `params.n` answers. Cancelling the task that waits for a delta ends them.

        Args:
            tenant: who asks; tenants share the engine fairly.
            priority: lower goes first.
            adapter: name of the one to answer with.

        Raises:
            TelechatError: the request cannot be taken; nothing was started.
        """
        ...

    async def embed(
        self,
        prompt_ids: list[int],
        pooling: Pooling = "mean",
        *,
        normalize: bool = False,
        tenant: str = "",
        adapter: str | None = None,
    ) -> array[float]:
        """The vector of a prompt, from the model's final hidden states: fp32 [hidden]. Cancelling ends it.

        Args:
            pooling: of all tokens' states the mean, or the last one.
            normalize: scale it to length 1.
            tenant, adapter: as in `stream`.

        Raises:
            TelechatError: as `stream`.
        """
        ...

    def close(self) -> None:
        """Stop; answers still running end."""
        ...
