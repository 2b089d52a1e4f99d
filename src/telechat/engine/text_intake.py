"""The intake of a model whose tokenizer is at hand: answers as text, and grammars."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from telechat.engine.grammar import GrammarCompiler
from telechat.engine.intake import Intake
from telechat.tokenizer import Tokenizer


def text_intake(
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    eos_token_ids: Iterable[int],
    max_model_len: int,
    adapter_number: Callable[[str], int] | None = None,
) -> Intake:
    """An intake that decodes with this tokenizer; the other arguments are those of `Intake`."""
    ends = tuple(eos_token_ids)
    return Intake(
        lambda skip: tokenizer.stream_decoder(skip_special_tokens=skip),
        vocab_size=vocab_size,
        eos_token_ids=ends,
        max_model_len=max_model_len,
        compile_grammar=GrammarCompiler(tokenizer, vocab_size=vocab_size, eos_token_ids=ends),
        adapter_number=adapter_number,
    )
