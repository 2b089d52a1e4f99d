"""Which part of every tensor a rank holds in training: pipeline stage, expert, cut, and ZeRO rows.

Built on the rules of `telechat.parallel.sharding`, which inference and conversion read as well. Integers
only; every rank can work out what any other holds.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from telechat.errors import ConfigError
from telechat.models.config import TeleChatConfig
from telechat.models.parameters import parameter_table
from telechat.parallel.sharding import Layout, check_layout, shard_of
from telechat.train.distributed.layout import ParallelLayout, Place
from telechat.train.distributed.stages import stage_layers

EMBEDDING = "transformer.word_embeddings.weight"
_LAYER = re.compile(r"^transformer\.h\.(\d+)\.")
_EXPERT = re.compile(r"\.local_experts\.(\d+)\.")
_ADAPTER = re.compile(r"^(.*)\.lora\.(a|b|magnitude)$")
Copies = Literal["none", "tp", "kv_heads"]


@dataclass(frozen=True)
class Cut:
    """A box of a whole tensor.

    Attributes:
        name: official name.
        whole: shape of the whole tensor.
        offsets, sizes: the box; a size may be 0.
        copies: the ranks beside this one, apart from those of data, that hold the same box and whose
            gradients have to be added: none, all of `tp`, or those of `tp` with the same key/value head.
    """

    name: str
    whole: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    copies: Copies = "none"

    @property
    def is_empty(self) -> bool:
        """Nothing is in it."""
        return 0 in self.sizes

    def narrow(self, dim: int, start: int, stop: int) -> Cut:
        """The indices start .. stop-1 of this box along a dimension."""
        offsets, sizes = list(self.offsets), list(self.sizes)
        offsets[dim] += start
        sizes[dim] = stop - start
        return dataclasses.replace(self, offsets=tuple(offsets), sizes=tuple(sizes))


class Division:
    """The parts of all ranks.

    Args:
        config: the model's.
        layout: complete, see `ParallelLayout.for_world`.
        shapes: whole shape of every parameter by official name; adapters included.

    Raises:
        ConfigError: the layout does not fit the model; names both numbers.
    """

    def __init__(
        self, config: TeleChatConfig, layout: ParallelLayout, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        check_fit(config, layout)
        self.config = config
        self.layout = layout
        self.shapes = dict(shapes)
        self.stages = stage_layers(config.num_layers, layout)
        self._tensor_layout = Layout(tp=layout.tp)
        self._table = {parameter.name: parameter for parameter in parameter_table(config)}

    def held(self, rank: int) -> dict[str, Cut]:
        """Everything a rank holds between steps, by name."""
        place = self.layout.place(rank)
        cuts = {}
        for name in self.shapes:
            if place.pp not in self.processes(name):
                continue
            cut = self.cut(name, place)
            if cut is not None:
                cuts[name] = self.rows(cut, place)
        return cuts

    def processes(self, name: str) -> tuple[int, ...]:
        """The processes of `pp` that hold a tensor: one, or both ends for a tied embedding."""
        layer = _LAYER.match(name)
        last = self.layout.pp - 1
        if layer:
            number = int(layer[1])
            stage = next(index for index, layers in enumerate(self.stages) if number in layers)
            return (stage % self.layout.pp,)
        if name == EMBEDDING and self.config.tie_word_embeddings and last:
            return (0, last)
        return (0,) if "word_embeddings" in name else (last,)

    def held_experts(self, place: Place) -> range:
        """Numbers of the experts of each layer that a rank holds; none of a dense model."""
        count = self.config.moe.num_experts // self.layout.ep if self.config.moe else 0
        return range(place.ep * count, (place.ep + 1) * count)

    def cut(self, name: str, place: Place) -> Cut | None:
        """A rank's part of a tensor while it computes; None where tensor or expert ranks hold it alone."""
        expert = _EXPERT.search(name)
        if expert and int(expert[1]) not in self.held_experts(place):
            return None
        shape = self.shapes[name]
        whole = Cut(name, shape, (0,) * len(shape), shape)
        adapter = _ADAPTER.match(name)
        # The numbers of a cut weight are those of its adapter's outer side; the inner side is whole.
        base = f"{adapter[1]}.weight" if adapter else name
        shard = shard_of(self._table[base], self.config, self._tensor_layout, place.tp)
        assert shard is not None
        tp = self.layout.tp
        if self._table[base].kind == "bias":  # added once, after the sum over ranks
            return whole if place.tp == 0 else None
        if shard.dim is None or (adapter and shard.dim != (1 if adapter[2] == "a" else 0)):
            return dataclasses.replace(whole, copies="tp" if tp > 1 else "none")
        shared_head = "kv_heads" in self._table[base].axes and self.config.num_kv_heads < tp
        cut = whole.narrow(shard.dim, shard.start, shard.stop)
        return dataclasses.replace(cut, copies="kv_heads" if shared_head else "none")

    def rows(self, cut: Cut, place: Place) -> Cut:
        """What is left of a part between steps, where ranks of data divide it."""
        if not self.divides_rows:
            return cut
        layout = self.layout
        assert layout.dp is not None
        index, size = place.dp * layout.cp + place.cp, layout.dp * layout.cp
        if not _EXPERT.search(cut.name):
            index, size = place.ep * size + index, layout.ep * size
        step = -(-cut.sizes[0] // size)
        start = min(index * step, cut.sizes[0])
        return cut.narrow(0, start, min(start + step, cut.sizes[0]))

    @property
    def divides_rows(self) -> bool:
        """Whether FSDP is used: there is something to divide, or to move to the host."""
        layout = self.layout
        assert layout.dp is not None
        return layout.zero_stage > 0 and (layout.dp * layout.cp * layout.ep > 1 or layout.offload)

    def num_copies(self, cut: Cut) -> int:
        """How many ranks hold the same box."""
        layout = self.layout
        assert layout.dp is not None
        copies = {"none": 1, "tp": layout.tp, "kv_heads": layout.tp // self.config.num_kv_heads}[cut.copies]
        if not self.divides_rows:
            copies *= layout.dp * layout.cp * (1 if _EXPERT.search(cut.name) else layout.ep)
        return copies * len(self.processes(cut.name))


def check_fit(config: TeleChatConfig, layout: ParallelLayout) -> None:
    """Refuse a layout that this model cannot be spread over.

    Raises:
        ConfigError: names both numbers.
    """
    check_layout(config, Layout(tp=layout.tp))
    if -(-config.vocab_size // layout.tp) * (layout.tp - 1) >= config.vocab_size:
        raise ConfigError(
            f"A vocabulary of {config.vocab_size} cannot be shared by parallel.tp {layout.tp} processes.",
            hint="Choose a smaller tp.",
        )
    if config.moe is None and layout.ep > 1:
        raise ConfigError(
            f"parallel.ep is {layout.ep}, but this model has no experts.",
            hint="Use dp, tp, pp or cp to spread a dense model.",
        )
    if config.moe is not None and config.moe.num_experts % layout.ep:
        raise ConfigError(
            f"{config.moe.num_experts} experts cannot be shared by parallel.ep {layout.ep} processes.",
            hint=f"Choose an ep that divides {config.moe.num_experts}.",
        )
    if layout.pp * layout.pp_interleave > config.num_layers + 2:
        raise ConfigError(
            f"{config.num_layers} layers cannot fill {layout.pp * layout.pp_interleave} pipeline stages.",
            hint="Lower parallel.pp or parallel.pp_interleave.",
        )
    if layout.cp > 1:
        _check_context(config, layout)


def _check_context(config: TeleChatConfig, layout: ParallelLayout) -> None:
    if config.attention_dropout > 0:
        raise ConfigError(
            f"attention_dropout is {config.attention_dropout}; parallel.cp {layout.cp} needs 0.",
            hint="Set it to 0 in config.json, or leave cp out.",
        )
    if layout.context == "ring":
        return
    heads, kv_heads = config.num_heads // layout.tp, max(1, config.num_kv_heads // layout.tp)
    if heads % layout.cp or (kv_heads % layout.cp and layout.cp % kv_heads):
        raise ConfigError(
            f"{heads} attention heads and {kv_heads} key/value heads of a rank cannot be exchanged among "
            f"parallel.cp {layout.cp} processes.",
            hint="Use parallel.context ring, which needs no heads to divide.",
        )
