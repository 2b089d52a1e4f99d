"""An opened checkpoint: its config, and one tensor for every entry of the parameter table.

This is what every format is read into and written from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from telechat.checkpoint.formats.lazy import LazyTensor, cast, same_numbers
from telechat.checkpoint.names import EMBEDDING, HEAD
from telechat.checkpoint.weights import FLOATS
from telechat.device import dtype_name
from telechat.errors import CheckpointError
from telechat.models import TeleChatConfig, parameter_table


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint of any format, opened.

    Attributes:
        config: sizes and constants.
        tensors: by the names of the parameter table, in its order, shapes and dtypes checked.
        folder: where tokenizer and generation settings lie; None when there is no such place.
        format: what it was read from, in words.
        runs_as: what another program computes from these files, where they say it in their own words; None
            where `config` says it.
        inside: small files that the source holds within itself, by name; for what `folder` lacks.
        in_module_order: its tensors lie in the order of the model's modules, as those of pickled files do,
            not by name; MindFormers' converter keeps the order that it finds.
        is_telechat1_52b: it came from files of the 52B, which MindSpore has a layout of its own for.
    """

    config: TeleChatConfig
    tensors: dict[str, LazyTensor]
    folder: Path | None
    format: str
    runs_as: TeleChatConfig | None = None
    inside: Mapping[str, bytes] = field(default_factory=dict)
    in_module_order: bool = False
    is_telechat1_52b: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of its tensors."""
        return Counter(tensor.dtype for tensor in self.tensors.values()).most_common(1)[0][0]

    def cast(self, dtype: torch.dtype | None) -> dict[str, LazyTensor]:
        """All tensors in one dtype; None leaves them as they are."""
        return {name: cast(tensor, dtype) for name, tensor in self.tensors.items()}


def without_tied_head(
    tensors: Mapping[str, LazyTensor], config: TeleChatConfig, source: str
) -> dict[str, LazyTensor]:
    """The tensors without a head that is stored although it is the embedding.

    Raises:
        CheckpointError: it is not.
    """
    rest = dict(tensors)
    if not config.tie_word_embeddings or HEAD not in rest or EMBEDDING not in rest:
        return rest
    if not same_numbers(rest.pop(HEAD), rest[EMBEDDING]):
        raise CheckpointError(
            f"The config of {source} ties the head to the embedding, but {HEAD} differs from it.",
            hint="Set tie_word_embeddings to false in the config.",
        )
    return rest


def fit_table(
    tensors: Mapping[str, LazyTensor], config: TeleChatConfig, source: str
) -> dict[str, LazyTensor]:
    """The tensors in the order of the parameter table.

    Args:
        source: name of the file or folder, for messages.

    Raises:
        CheckpointError: a tensor is missing, extra, misshapen or not floating point; names it.
    """
    table = {parameter.name: parameter for parameter in parameter_table(config)}
    hint = "Check that the config belongs to these weights."
    for problem, names in (
        ("lacks", [name for name in table if name not in tensors]),
        ("has no place for", [name for name in tensors if name not in table]),
    ):
        if names:
            more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
            subject = source if problem == "lacks" else f"The config of {source}"
            raise CheckpointError(f"{subject} {problem} {', '.join(names[:3])}{more}.", hint=hint)
    for name, parameter in table.items():
        tensor = tensors[name]
        if tensor.shape != parameter.shape:
            raise CheckpointError(
                f"{source}: {name} has shape {list(tensor.shape)}; the config says {list(parameter.shape)}.",
                hint=hint,
            )
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{source}: {name} has dtype {dtype_name(tensor.dtype)}, not a float.")
    return {name: tensors[name] for name in table}
