"""One decoder block at a time, alone in memory, and what its linear layers read.

Reads the block's weights from the folder, carries all calibration rows through it, and hands the layers'
inputs to who wants them. Knows nothing of quantisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from telechat.checkpoint.names import EMBEDDING
from telechat.checkpoint.weights import StoredWeights
from telechat.device import CPU, supports_bfloat16
from telechat.layers.attention import AttentionInputs
from telechat.models import TeleChatConfig, build_model, count_parameters
from telechat.models.decoder import DecoderBlock
from telechat.quant.calibration import Calibration
from telechat.quant.hessian import Hessian

_EMBEDDING_NORM = "transformer.word_embeddings_layernorm.weight"
# Below this, blocks compute in fp32: it costs little.
_SMALL_MODEL_PARAMETERS = 500_000_000

# Layers, named within their block, that read the same input.
InputGroup = tuple[str, ...]
# Shown the inputs and outputs of a layer's call.
Watcher = Callable[[Tensor, Tensor], None]


def stages(config: TeleChatConfig) -> list[list[InputGroup]]:
    """The order in which a block's layers are quantised: the official one.

    Each stage holds groups of layers; a later stage reads what the earlier ones, quantised, give.
    """
    feed_forwards = ["mlp"]
    if config.moe:
        feed_forwards = [f"mlp.local_experts.{expert}" for expert in range(config.moe.num_experts)]
    return [
        [("self_attention.key_value", "self_attention.query")],
        [("self_attention.dense",)],
        [(f"{name}.up_proj", f"{name}.gate_proj") for name in feed_forwards],
        [(f"{name}.down_proj",) for name in feed_forwards],
    ]


@dataclass
class Seen:
    """What a group of layers read, and how much its layers gave.

    Attributes:
        hessian: of the common input.
        output_energy: sum of squares of each layer's outputs without bias, over all tokens.
    """

    hessian: Hessian
    output_energy: dict[str, float] = field(default_factory=dict)


class _Enough(Exception):
    """Everything that was wanted of a pass has been seen."""


class BlockSource:
    """The blocks of a model folder, one at a time.

    Args:
        names: name by the parameter table -> name on disk.
    """

    def __init__(self, config: TeleChatConfig, weights: StoredWeights, names: Mapping[str, str]) -> None:
        self.config = config
        self.weights = weights
        self.names = names
        is_small = count_parameters(config) <= _SMALL_MODEL_PARAMETERS
        self.dtype = torch.float32 if is_small or not supports_bfloat16(CPU) else torch.bfloat16
        self._skeleton = build_model(config, device="meta", target=CPU, dtype=self.dtype).eval()

    def read(self, name: str) -> Tensor:
        """A tensor of the parameter table as it is on disk, in memory of its own."""
        [(_, tensor)] = self.weights.stream({self.names[name]})
        return tensor if self.weights.owns_memory else tensor.clone()

    def block(self, index: int) -> Block:
        """Read a block."""
        module = self._skeleton.transformer.blocks[index]
        prefix = f"transformer.h.{index}."
        for name in [name for name, _ in module.named_parameters()]:
            owner, _, leaf = name.rpartition(".")
            values = self.read(prefix + name).to(self.dtype)
            setattr(module.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))
        return Block(module, prefix)

    def release(self, block: Block) -> None:
        """Give a block's memory back."""
        block.module.to_empty(device=torch.device("meta"))

    @torch.no_grad()
    def embed(self, calibration: Calibration) -> list[Tensor]:
        """What the first block reads: [1, S, hidden] of each row."""
        table = self.read(EMBEDDING)
        rows = [F.embedding(torch.tensor([row]), table).to(self.dtype) for row in calibration.rows]
        if self.config.embed_layernorm:
            weight = self.read(_EMBEDDING_NORM).to(self.dtype)
            rows = [F.rms_norm(x, weight.shape, weight, self.config.norm_eps) for x in rows]
        return rows

    def walk(self, calibration: Calibration) -> Iterator[tuple[int, Block, list[Tensor]]]:
        """Each block by its number, with the rows that it reads.

        What the next block reads is what this one gives when the next is asked for, changed weights and all.
        """
        rows = self.embed(calibration)
        for index in range(self.config.num_layers):
            block = self.block(index)
            yield index, block, rows
            if index + 1 < self.config.num_layers:
                block.advance(self, rows)
            self.release(block)

    def inputs_of(self, x_1SD: Tensor) -> AttentionInputs:
        """Rotary rows and mask of one row."""
        length = x_1SD.shape[1]
        positions = torch.arange(length)[None]
        cos, sin = self._skeleton.rotary.lookup(positions, [length])
        return AttentionInputs(cos, sin, None, is_causal=length > 1)


@dataclass(frozen=True)
class Block:
    """A block with its weights; `prefix` is of its names in the parameter table."""

    module: DecoderBlock
    prefix: str

    def linear(self, name: str) -> nn.Linear:
        """A layer by its name within the block."""
        layer = self.module.get_submodule(name)
        assert isinstance(layer, nn.Linear), name
        return layer

    def replace_weight(self, name: str, weight: Tensor) -> None:
        """Compute with another weight from now on."""
        layer = self.linear(name)
        layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)

    @torch.no_grad()
    def advance(self, source: BlockSource, rows: list[Tensor]) -> None:
        """Replace what the block reads by what it gives, row by row."""
        for index, x in enumerate(rows):
            rows[index] = self.module(x, source.inputs_of(x))

    @torch.no_grad()
    def watch(self, source: BlockSource, rows: Sequence[Tensor], watchers: Mapping[str, Watcher]) -> None:
        """Run all rows as far as the named layers, and show each layer's calls to its watcher."""
        called: set[str] = set()

        def shown_to(name: str, watcher: Watcher) -> Any:
            def hook(layer: nn.Linear, args: tuple[Tensor], output: Tensor) -> None:
                watcher(args[0], output)
                called.add(name)
                if len(called) == len(watchers):
                    raise _Enough

            return hook

        with ExitStack() as stack:
            for name, watcher in watchers.items():
                handle = self.linear(name).register_forward_hook(shown_to(name, watcher))
                stack.callback(handle.remove)
            for x in rows:
                called.clear()
                try:
                    self.module(x, source.inputs_of(x))
                except _Enough:
                    continue

    def observe(
        self, source: BlockSource, rows: Sequence[Tensor], groups: Sequence[InputGroup]
    ) -> dict[InputGroup, Seen]:
        """What groups of layers read, and how much each gave."""
        seen = {group: Seen(Hessian(self.linear(group[0]).in_features)) for group in groups}

        def noting(group: InputGroup, name: str) -> Watcher:
            bias = self.linear(name).bias

            def note(inputs: Tensor, output: Tensor) -> None:
                if name == group[0]:
                    seen[group].hessian.add(inputs)
                plain = output if bias is None else output - bias
                energy = seen[group].output_energy
                # By rows: in bf16 torch has a norm that is many times as fast as a sum of squares in fp32.
                norms = torch.linalg.vector_norm(plain, dim=-1)
                energy[name] = energy.get(name, 0.0) + float(norms.float().square().sum())

            return note

        self.watch(source, rows, {name: noting(group, name) for group in groups for name in group})
        return seen


def layers_of(config: TeleChatConfig) -> Iterator[str]:
    """Names by the parameter table of all layers that are quantised, in order."""
    for index in range(config.num_layers):
        for stage in stages(config):
            for group in stage:
                yield from (f"transformer.h.{index}.{name}.weight" for name in group)
