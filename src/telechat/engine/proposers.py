"""From what a user asks to be guessed by, `prompt-lookup` or a small model, to a source of guesses.

Knows names and models; the guessing itself is in `speculation` and `draft_model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from telechat.engine.draft_model import DraftModel
from telechat.engine.loading import KvCacheDtype
from telechat.engine.opening import OpenModel, open_model
from telechat.engine.speculation import PromptLookup, Proposer
from telechat.errors import ConfigError
from telechat.models import TeleChatModel
from telechat.models.paged import Executor
from telechat.parallel.sharding import Layout

PROMPT_LOOKUP = "prompt-lookup"
DEFAULT_NUM_DRAFT_TOKENS = 4
MAX_DRAFT_TOKENS = 16


@dataclass(frozen=True)
class Speculation:
    """A source of guesses that waits for the size of the cache.

    Attributes:
        num_draft_tokens: most guesses for one request in a step.
        executor: of the small model; None for prompt-lookup.
    """

    num_draft_tokens: int
    executor: Executor | None

    def cache_bytes_per_block(self, block_size: int) -> int:
        """Memory that it needs for every block of the large model."""
        return 0 if self.executor is None else self.executor.cache_bytes_per_block(block_size)

    def proposer(self, *, num_blocks: int, block_size: int) -> Proposer:
        """The source itself, for a cache of that size."""
        if self.executor is None:
            return PromptLookup(self.num_draft_tokens)
        return DraftModel(
            self.executor,
            num_blocks=num_blocks,
            block_size=block_size,
            num_draft_tokens=self.num_draft_tokens,
        )

    def close(self) -> None:
        """Give the small model's cache back."""
        if self.executor is not None:
            self.executor.close()


def open_speculation(
    source: str | Path | TeleChatModel | None,
    num_draft_tokens: int | None,
    *,
    target: OpenModel,
    max_model_len: int,
    kv_cache_dtype: KvCacheDtype,
    device: str,
    dtype: str,
    attention: str,
) -> Speculation | None:
    """What `LLM(speculate=source)` asks for; None for None.

    Args:
        num_draft_tokens: None is the default.
        target: the large model, whose context and rotary mode the small one takes over.

    Raises:
        ConfigError: a number out of range or without a source; a small model with other tokens.
        CheckpointError, TokenizerError, DeviceError: it cannot be used.
    """
    if source is None:
        if num_draft_tokens is not None:
            raise ConfigError(
                "num_draft_tokens says how many guesses there are, but not where they come from.",
                hint=f"Set speculate too, to {PROMPT_LOOKUP} or a small model.",
            )
        return None
    number = DEFAULT_NUM_DRAFT_TOKENS if num_draft_tokens is None else num_draft_tokens
    if not 1 <= number <= MAX_DRAFT_TOKENS:
        raise ConfigError(f"num_draft_tokens is {number}; it must be from 1 to {MAX_DRAFT_TOKENS}.")
    if source == PROMPT_LOOKUP:
        return Speculation(number, None)
    draft = open_model(
        source,
        target.tokenizer if isinstance(source, TeleChatModel) else None,
        None,
        deterministic=False,
        kv_cache_dtype=kv_cache_dtype,
        layout=Layout(),
        master_port=0,
        bind_cpu=False,
        device=device,
        dtype=dtype,
        attention=attention,
        rope_mode=target.executor.rope_mode,
        static_length=max_model_len,
    )
    try:
        _check_same_tokens(draft, target)
    except ConfigError:
        draft.executor.close()
        raise
    return Speculation(number, draft.executor)


def _check_same_tokens(draft: OpenModel, target: OpenModel) -> None:
    """Refuses a small model whose token ids mean something else than the large model's."""
    size, drafts_size = target.executor.config.vocab_size, draft.executor.config.vocab_size
    if drafts_size != size:
        raise ConfigError(
            f"{draft.name}, which is to guess, has rows for {drafts_size} tokens; {target.name} for {size}.",
            hint="Choose a small model of the same generation.",
        )
    if draft.tokenizer is target.tokenizer:
        return
    for token_id in range(size):
        ours, theirs = target.tokenizer.id_to_token(token_id), draft.tokenizer.id_to_token(token_id)
        if ours != theirs:
            raise ConfigError(
                f"Token {token_id} is {theirs!r} to {draft.name}, which is to guess, and {ours!r} to "
                f"{target.name}.",
                hint="Choose a small model of the same generation.",
            )
