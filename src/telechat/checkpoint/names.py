"""Tensor names as they are found on disk, and what they are called in the parameter table.

Knows no files and no tensors, only names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from telechat.errors import CheckpointError

PREFIX = "transformer."
HEAD = "lm_head.weight"
EMBEDDING = "transformer.word_embeddings.weight"

# Tables that some exports store although the model computes them. Nothing else may be left unread.
TOLERATED_BUFFERS = (
    re.compile(r"(transformer\.)?h\.\d+\.self_attention\.rotary_emb\.inv_freq"),
    re.compile(r"(transformer\.)?h\.\d+\.self_attention\.(last_key_layer|causal_mask|bias_mask)"),
    re.compile(r"(transformer\.)?rotary_emb\.inv_freq"),
)

_EXPERT = re.compile(r"\.mlp\.local_experts\.(\d+)\.")


def canonical_name(stored: str) -> str:
    """The parameter-table name of a name on disk: the TeleChat1-7B leaves `transformer.` out."""
    return stored if stored.startswith((PREFIX, "lm_head.")) else PREFIX + stored


def is_tolerated(stored: str) -> bool:
    """Whether a stored tensor is a known buffer that need not be read."""
    return any(pattern.fullmatch(stored) for pattern in TOLERATED_BUFFERS)


def canonical_names(stored: Iterable[str]) -> dict[str, str]:
    """Map table names to names on disk, buffers left out.

    Raises:
        CheckpointError: two stored names mean the same tensor.
    """
    names: dict[str, str] = {}
    for name in stored:
        if is_tolerated(name):
            continue
        canonical = canonical_name(name)
        if canonical in names:
            raise CheckpointError(
                f"The checkpoint holds {canonical} twice: as {names[canonical]} and as {name}."
            )
        names[canonical] = name
    return names


def count_experts(names: Mapping[str, object] | Iterable[str]) -> int:
    """How many experts per layer the tensor names speak of; 0 for a dense model."""
    found = [int(match.group(1)) for name in names if (match := _EXPERT.search(name))]
    return max(found) + 1 if found else 0
