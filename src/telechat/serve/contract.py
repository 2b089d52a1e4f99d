"""What the service needs from an engine, and nothing more.

`telechat.engine.AsyncEngine` fits; so does the small fake of the tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Protocol

from telechat.engine.outputs import Delta
from telechat.engine.sampling_params import SamplingParams


class ServiceTokenizer(Protocol):
    """Conversations to token ids, ids to text."""

    @property
    def vocab_size(self) -> int: ...
    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...


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


class DeltaStream(Protocol):
    """The answers to one prompt as they grow, told apart by `Delta.index`."""

    def __aiter__(self) -> AsyncIterator[Delta]: ...
    async def aclose(self) -> None:
        """End what is still running."""
        ...


class ServiceEngine(Protocol):
    """Answers many prompts at once."""

    @property
    def llm(self) -> ServiceModel: ...
    @property
    def is_alive(self) -> bool:
        """Requests are taken and answered."""
        ...

    def stream(self, prompt_ids: list[int], params: SamplingParams, *, tenant: str = "") -> DeltaStream:
        """Start `params.n` answers. Cancelling the task that waits for a delta ends them.

        Args:
            tenant: who asks; tenants share the engine fairly.

        Raises:
            TelechatError: the request cannot be taken; nothing was started.
        """
        ...

    def close(self) -> None:
        """Stop; answers still running end."""
        ...
