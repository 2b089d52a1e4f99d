"""Folders of GPTQ tools: AutoGPTQ's two formats, with the settings in any of their places.

Which layers are quantised is read from the tensors. Knows nothing of how to quantise; the packing of words is
in `gptq`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from telechat.checkpoint.gptq import (
    GROUP_INDEX,
    QWEIGHT,
    QZEROS,
    SCALES,
    V1,
    Codes,
    check_bits,
    check_checkpoint_format,
)
from telechat.checkpoint.packed import Expected, LoadedWeight, from_codes
from telechat.errors import CheckpointError, ConfigError

METHOD = "gptq"
# Other tools' names of the settings.
_ALIASES = {"w_bit": "bits", "wbits": "bits", "q_group_size": "group_size", "groupsize": "group_size"}
_WEIGHT = ".weight"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GptqFormat:
    """How a folder's GPTQ weights are stored.

    Attributes:
        bits: 2, 4 or 8.
        group_size: inputs that share a scale; -1: all of an output.
        checkpoint_format: `gptq` or `gptq_v2`: how zero points are stored.
        overrides: (expression for names of layers, bits, group size) of layers that differ; the first that
            matches counts.
    """

    bits: int
    group_size: int
    checkpoint_format: str = V1
    overrides: tuple[tuple[str, int, int], ...] = field(default=())

    def __post_init__(self) -> None:
        check_checkpoint_format(self.checkpoint_format)
        for bits, group_size in ((self.bits, self.group_size), *(rest for _, *rest in self.overrides)):
            check_bits(bits)
            if group_size < -1 or group_size == 0:
                raise ConfigError(f"group_size is {group_size}; it must be positive, or -1.")

    @classmethod
    def read(cls, section: Mapping[str, Any], file: str) -> GptqFormat:
        """From settings as AutoGPTQ, GPTQModel and transformers write them.

        Raises:
            CheckpointError: settings that cannot be read; says `file`.
        """
        given = {_ALIASES.get(key, key): value for key, value in section.items()}
        damp = given.get("damp_percent", 0.01)
        if isinstance(damp, bool) or not isinstance(damp, int | float) or not 0 < damp < 1:
            raise CheckpointError(f"{file}: damp_percent is {damp!r}; it must be between 0 and 1.")
        if "sym" not in given:
            log.warning(
                "%s does not say whether weights are symmetric; zero points are read either way", file
            )
        bits, group_size = (_integer(given, key, file) for key in ("bits", "group_size"))
        dynamic = given.get("dynamic") or {}
        if not isinstance(dynamic, Mapping):
            raise CheckpointError(f"{file}: dynamic is {dynamic!r}; it must be an object of patterns.")
        overrides = []
        for pattern, change in dynamic.items():
            if pattern.startswith("-:"):  # layers left as they are; the tensors say so too
                continue
            if not isinstance(change, Mapping):
                raise CheckpointError(f"{file}: dynamic has {change!r} for {pattern!r}; expected an object.")
            changed = {**given, **change}
            expression = pattern.removeprefix("+:")
            try:
                re.compile(expression)
            except re.error as error:
                raise CheckpointError(f"{file}: {pattern!r} is no regular expression: {error}.") from error
            overrides.append((expression, *(_integer(changed, key, file) for key in ("bits", "group_size"))))
        try:
            return cls(
                bits=bits,
                group_size=group_size,
                checkpoint_format=given.get("checkpoint_format") or V1,
                overrides=tuple(overrides),
            )
        except ConfigError as error:
            raise CheckpointError(f"{file}: {error.message}", hint=error.hint) from error

    @property
    def summary(self) -> str:
        """Method, bits and groups."""
        groups = "one group per output" if self.group_size == -1 else f"groups of {self.group_size}"
        mixed = ", some layers otherwise" if self.overrides else ""
        return f"GPTQ, {self.bits} bits in {groups}{mixed}"

    def layout_of(self, name: str) -> tuple[int, int]:
        """(bits, group size) of the weight called `name`."""
        layer = name.removesuffix(_WEIGHT)
        for expression, bits, group_size in self.overrides:
            if re.match(expression, layer):
                return bits, group_size
        return self.bits, self.group_size

    def expected(self, name: str, shape: tuple[int, ...], stored: Collection[str]) -> Expected:
        """See `PackedFormat`."""
        base = name.removesuffix(_WEIGHT) + "."
        if not {base + QWEIGHT, base + QZEROS, base + SCALES} & set(stored):
            return {}
        rows, columns = shape
        bits, group_size = self.layout_of(name)
        per_word = 32 // bits
        if columns % per_word or rows % per_word:
            raise CheckpointError(
                f"{name} is {rows} x {columns}, which does not fill words of {per_word} codes.",
                hint="Check that config.json and the settings of the quantisation belong to these weights.",
            )
        num_groups = 1 if group_size == -1 else -(-columns // group_size)
        found: Expected = {
            base + QWEIGHT: ((columns // per_word, rows), (torch.int32,)),
            base + QZEROS: ((num_groups, rows // per_word), (torch.int32,)),
            base + SCALES: ((num_groups, rows), _FLOATS),
        }
        if base + GROUP_INDEX in stored:
            found[base + GROUP_INDEX] = ((columns,), (torch.int32, torch.int64))
        return found

    def holds_bias(self, name: str, stored: Collection[str]) -> bool:
        """Never."""
        return False

    def assemble(self, name: str, tensors: Mapping[str, Tensor]) -> LoadedWeight:
        """See `PackedFormat`."""
        base = name.removesuffix(_WEIGHT) + "."
        bits, group_size = self.layout_of(name)
        parts = {key.removeprefix(base): tensor for key, tensor in tensors.items()}
        if GROUP_INDEX not in parts and group_size != -1:
            parts[GROUP_INDEX] = torch.arange(parts[QWEIGHT].shape[0] * 32 // bits) // group_size
        return from_codes(Codes.unpack(parts, bits, self.checkpoint_format, name=name))


def _integer(given: Mapping[str, Any], key: str, file: str) -> int:
    value = given.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(f"{file}: {key} is {value!r}; it must be a whole number.")
    return value
