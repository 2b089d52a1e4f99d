"""Shapes of the models that are timed. Standard library only; knows no engine."""

from __future__ import annotations

from dataclasses import dataclass

# Bits per weight, scales included, that a decoding step reads.
BITS = {"int4": 4.5, "int8": 8.5, "bf16": 16.0}
# What the CPU kernels keep bf16 in.
COMPACT_BITS = 12.0
# The peer's formats of the same size.
GGUF_TYPES = {"int4": "Q4_0", "int8": "Q8_0", "bf16": "BF16"}


@dataclass(frozen=True)
class Shape:
    """A dense decoder without grouped heads.

    Attributes:
        name: as on the command line.
        ffn: inner width of the feed-forward block.
    """

    name: str
    num_layers: int
    hidden: int
    ffn: int
    num_heads: int
    vocab: int = 32000

    @property
    def weights_per_token(self) -> int:
        """Weights that a decoding step reads: all but the embedding."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.ffn
        return self.num_layers * layer + self.vocab * self.hidden

    def bytes_per_token(self, weight_format: str, *, is_compact: bool = False) -> float:
        """Bytes of weights that a decoding step reads; of bf16 fewer where the CPU kernels keep it."""
        bits = COMPACT_BITS if is_compact and weight_format == "bf16" else BITS[weight_format]
        return self.weights_per_token * bits / 8


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("7B", 30, 4096, 12288, 32, vocab=131072),
        Shape("M", 6, 4096, 12288, 32),
        Shape("S", 12, 1536, 4096, 12),
        Shape("tiny", 2, 256, 512, 4, vocab=4096),
    )
}
