"""Training byte-level BPE vocabularies with the control tokens in TeleChat2's order.

The splitting pattern is the one stock llama.cpp knows as `qwen2`, so an exported model needs no patch. No
normaliser: decoding gives back exactly the text that was encoded. Han runs are cut in the *training text
only*; otherwise whole clauses, which the pattern does not split, would become single entries. Knows nothing
about where the text comes from or which model will use the vocabulary.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telechat.errors import ConfigError, TokenizerError
from telechat.tokenizer.chat_formats import TemplateFormat
from telechat.tokenizer.jinja_template import TELECHAT2_JINJA
from telechat.tokenizer.messages import check_tools, read_messages
from telechat.tokenizer.special import TOOL_TAGS

if TYPE_CHECKING:
    import tokenizers

# Fixed ids 0, 1, 2, …: the order of the TeleChat2 vocabulary, then the tool tags.
CONTROL_TOKENS = (
    "<unk>",
    "<_start>",
    "<_end>",
    "<_pad>",
    "<_user>",
    "<_bot>",
    "<_system>",
    "<_observation>",
    *TOOL_TAGS,
)
NUM_BYTES = 256

QWEN2_SPLIT = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_HAN_RUN = re.compile("([\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+)")
_PIECES_PER_BATCH = 4096


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, out_folder: str | Path, max_han_run: int = 3, seed: int = 0
) -> Path:
    """Trains a vocabulary and writes `tokenizer.json` and `tokenizer_config.json` into `out_folder`.

    Args:
        texts: training texts; read once.
        vocab_size: entries in all, control tokens and the 256 bytes included.
        out_folder: created when missing; existing tokenizer files there are replaced.
        max_han_run: longest run of Han characters a training piece may hold; runs are cut into pieces of
            random length from 1 to this.
        seed: of those lengths.

    Returns:
        The folder.

    Raises:
        ConfigError: `vocab_size` or `max_han_run` out of range.
        TokenizerError: the texts are too few or too uniform for that many entries.
    """
    smallest = len(CONTROL_TOKENS) + NUM_BYTES
    if vocab_size < smallest:
        raise ConfigError(
            f"vocab_size is {vocab_size}; control tokens and bytes alone need {smallest}.",
            hint=f"Give at least {smallest}.",
        )
    if max_han_run < 1:
        raise ConfigError(f"max_han_run is {max_han_run}; it must be at least 1.")
    tokenizer = _empty_tokenizer()
    tokenizer.train_from_iterator(
        _batches(cut_han_runs(texts, max_han_run=max_han_run, seed=seed)), trainer=_trainer(vocab_size)
    )
    _check_result(tokenizer, vocab_size)
    folder = Path(out_folder)
    folder.mkdir(parents=True, exist_ok=True)
    definition = json.loads(tokenizer.to_str())
    for token in definition["added_tokens"]:
        # Other programs drop "special" tokens from answers; a tool call must stay readable there.
        token["special"] = token["content"] not in TOOL_TAGS
    for name, content in (("tokenizer.json", definition), ("tokenizer_config.json", tokenizer_config())):
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return folder


def conversation_texts(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
) -> Iterator[str]:
    """What the TeleChat2 format encodes for a conversation, its own system and tool texts included."""
    parts = TemplateFormat().render(
        read_messages(messages), check_tools(tools), add_generation_prompt=False, official=False
    )
    return (part.text for part in parts if not part.is_control)


def cut_han_runs(texts: Iterable[str], *, max_han_run: int, seed: int) -> Iterator[str]:
    """Pieces of `texts`: every run of Han characters is set apart and cut into 1 to `max_han_run` characters.

    Setting runs apart from punctuation as well keeps entries such as `，你` out of the vocabulary.
    """
    lengths = random.Random(seed)
    for text in texts:
        # The pattern has one group, so split() alternates: other text, Han run, other text, …
        for index, part in enumerate(_HAN_RUN.split(text)):
            if index % 2 == 0:
                if part:
                    yield part
                continue
            start = 0
            while start < len(part):
                length = lengths.randint(1, max_han_run)
                yield part[start : start + length]
                start += length


def tokenizer_config() -> dict[str, Any]:
    """The `tokenizer_config.json` of a trained vocabulary, as transformers reads it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<_start>",
        "eos_token": "<_end>",
        "pad_token": "<_pad>",
        "unk_token": "<unk>",
        "additional_special_tokens": ["<_user>", "<_bot>", "<_system>", "<_observation>"],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 100000000,
        "padding_side": "left",
        "chat_format": "telechat2",
        "chat_template": TELECHAT2_JINJA,
    }


def _empty_tokenizer() -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _trainer(vocab_size: int) -> Any:
    import tokenizers
    from tokenizers import pre_tokenizers, trainers

    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[tokenizers.AddedToken(name, normalized=False) for name in CONTROL_TOKENS],
        show_progress=False,
    )


def _batches(pieces: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for piece in pieces:
        batch.append(piece)
        if len(batch) == _PIECES_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _check_result(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> None:
    for token_id, name in enumerate(CONTROL_TOKENS):
        assert tokenizer.token_to_id(name) == token_id, (name, token_id)
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        raise TokenizerError(
            f"The texts hold enough repetition for {found} entries; {vocab_size} were asked for.",
            hint=f"Give more text or a vocabulary size of at most {found}.",
        )
