"""Quantised weights as GPTQ tools store them: words of 32 bits, inputs before outputs.

A layer P with N outputs, K inputs and G groups has `P.qweight` int32 [K * bits / 32, N], `P.qzeros` int32
[G, N * bits / 32], `P.scales` [G, N] and `P.g_idx` int32 [K], the group of each input. Earlier fields of a
word are in lower bits; weight = scale * (code - zero), codes and zeros from 0 to 2^bits - 1. The format
"gptq" (also called v1) stores zero - 1, "gptq_v2" the zero itself. Knows nothing of how codes were found.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from telechat.errors import CheckpointError, ConfigError

BITS = (2, 4, 8)
V1, V2 = "gptq", "gptq_v2"
CHECKPOINT_FORMATS = (V1, V2)
QWEIGHT, QZEROS, SCALES, GROUP_INDEX = "qweight", "qzeros", "scales", "g_idx"
_WORD = 32
_MASK = 0xFFFFFFFF


def check_bits(bits: int) -> None:
    """Refuse what cannot be packed.

    Raises:
        ConfigError: not 2, 4 or 8 bits.
    """
    if bits == 3:
        raise ConfigError(
            "bits is 3; three bits do not divide a word of 32 and are not supported.",
            hint="Choose 2, 4 or 8.",
        )
    if bits not in BITS:
        raise ConfigError(f"bits is {bits}; GPTQ weights have 2, 4 or 8.")


def check_checkpoint_format(name: str) -> None:
    """Raise ConfigError for anything but `gptq` and `gptq_v2`."""
    if name not in CHECKPOINT_FORMATS:
        raise ConfigError(f"checkpoint_format is {name!r}; it must be {' or '.join(CHECKPOINT_FORMATS)}.")


def pack_words(values_RC: Tensor, bits: int) -> Tensor:
    """Unsigned integers [R, C] below 2^bits -> int32 [R * bits / 32, C], consecutive rows in one word."""
    R, C = values_RC.shape
    per_word = _WORD // bits
    fields = values_RC.view(R // per_word, per_word, C).to(torch.int64)
    words = torch.zeros(R // per_word, C, dtype=torch.int64, device=values_RC.device)
    for place in range(per_word):
        words |= fields[:, place] << (place * bits)
    return _as_int32(words)


def unpack_words(words_RC: Tensor, bits: int) -> Tensor:
    """int32 [R, C] -> uint8 [R * 32 / bits, C]."""
    R, C = words_RC.shape
    per_word, mask = _WORD // bits, 2**bits - 1
    fields = torch.empty(R, per_word, C, dtype=torch.uint8, device=words_RC.device)
    for place in range(per_word):
        # Shifting brings copies of the sign bit in from the left; the mask takes them away.
        fields[:, place] = (words_RC >> (place * bits)) & mask
    return fields.view(R * per_word, C)


def pack_zeros(zeros_GN: Tensor, bits: int, checkpoint_format: str = V1) -> Tensor:
    """Zero points [G, N] -> int32 [G, N * bits / 32]. In v1 they must be at least 1."""
    words = pack_words(zeros_GN.t().contiguous(), bits).t().to(torch.int64) & _MASK
    if checkpoint_format == V1:
        assert int(zeros_GN.min()) >= 1, "v1 cannot store a zero point of 0"
        words = words - _ones(bits)
    return _as_int32(words & _MASK).contiguous()


def unpack_zeros(qzeros: Tensor, bits: int, checkpoint_format: str = V1) -> Tensor:
    """int32 [G, N * bits / 32] -> zero points uint8 [G, N].

    v1 is read as its writers wrote it: 1 is added to every field of the whole word, modulo 2^32, and only
    then is the word taken apart. Where a zero point was 0, its subtraction has borrowed from the next field.
    """
    words = qzeros.to(torch.int64) & _MASK
    if checkpoint_format == V1:
        words = (words + _ones(bits)) & _MASK
    return unpack_words(_as_int32(words).t(), bits).t().contiguous()


def _ones(bits: int) -> int:
    """A word with 1 in every field."""
    return sum(1 << place for place in range(0, _WORD, bits))


def _as_int32(words: Tensor) -> Tensor:
    """int64 words below 2^32 as the int32 with the same bits."""
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def default_group_index(num_inputs: int, num_groups: int) -> Tensor:
    """The group of each input, int64 [K], where a file does not say: groups follow one another."""
    return torch.arange(num_inputs) // -(-num_inputs // num_groups)


class Codes:
    """A weight taken apart.

    Attributes:
        codes_NK: uint8 [N, K].
        zeros_GN: uint8 [G, N].
        scales_GN: fp16 or wider [G, N].
        groups_K: int64 [K], the group of each input.
    """

    def __init__(self, codes_NK: Tensor, zeros_GN: Tensor, scales_GN: Tensor, groups_K: Tensor) -> None:
        self.codes_NK, self.zeros_GN = codes_NK, zeros_GN
        self.scales_GN, self.groups_K = scales_GN, groups_K

    @classmethod
    def unpack(
        cls, tensors: Mapping[str, Tensor], bits: int, checkpoint_format: str = V1, *, name: str = "the layer"
    ) -> Codes:
        """Take `qweight`, `qzeros`, `scales` and, where present, `g_idx` apart.

        Raises:
            ConfigError: bits or format that are not supported.
            CheckpointError: a tensor is missing, or the shapes do not belong together; says `name`.
        """
        check_bits(bits)
        check_checkpoint_format(checkpoint_format)
        missing = [key for key in (QWEIGHT, QZEROS, SCALES) if key not in tensors]
        if missing:
            raise CheckpointError(f"{name} lacks {', '.join(missing)}.")
        qweight, qzeros, scales = (tensors[key] for key in (QWEIGHT, QZEROS, SCALES))
        (num_groups, num_outputs), num_inputs = scales.shape, qweight.shape[0] * _WORD // bits
        if qweight.shape[1] != num_outputs or qzeros.shape != (num_groups, num_outputs * bits // _WORD):
            raise CheckpointError(
                f"{name}: qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)} and scales "
                f"{list(scales.shape)} do not belong together at {bits} bits."
            )
        groups = tensors.get(GROUP_INDEX)
        if groups is None:
            groups = default_group_index(num_inputs, num_groups)
        groups = groups.to(torch.int64)
        if groups.shape != (num_inputs,) or int(groups.min()) < 0 or int(groups.max()) >= num_groups:
            raise CheckpointError(
                f"{name}: g_idx must hold {num_inputs} numbers from 0 to {num_groups - 1}; it is "
                f"{list(groups.shape)} from {int(groups.min())} to {int(groups.max())}."
            )
        codes = unpack_words(qweight, bits).t().contiguous()
        return cls(codes, unpack_zeros(qzeros, bits, checkpoint_format), scales, groups)

    def pack(self, bits: int, checkpoint_format: str = V1) -> dict[str, Tensor]:
        """The four tensors on disk."""
        return {
            QWEIGHT: pack_words(self.codes_NK.t().contiguous(), bits),
            QZEROS: pack_zeros(self.zeros_GN, bits, checkpoint_format),
            SCALES: self.scales_GN.contiguous(),
            GROUP_INDEX: self.groups_K.to(torch.int32),
        }

    def integers(self) -> Tensor:
        """code - zero, int16 [N, K]."""
        return self.codes_NK.to(torch.int16) - self.zeros_GN.to(torch.int16)[self.groups_K].t()

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [N, K] that is meant."""
        scales = self.scales_GN.to(dtype)[self.groups_K].t()
        return (self.integers().to(dtype) * scales).contiguous()
