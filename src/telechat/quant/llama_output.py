"""The result of GPTQ as a Llama that vLLM and stock transformers run: compressed-tensors, plain Llama names.

The integers are GPTQ's own: keys and values are taken apart after quantisation, row by row, and attention's
scaling goes into the scales of the query projection. Knows nothing of how codes were found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from telechat.checkpoint.folder import GENERATION_CONFIG
from telechat.checkpoint.formats.llama import llama_config, query_scale
from telechat.checkpoint.formats.stock_tokenizer import stock_tokenizer
from telechat.checkpoint.gptq import Codes
from telechat.checkpoint.names import EMBEDDING, HEAD
from telechat.checkpoint.packed import SECTION, from_codes
from telechat.checkpoint.quantized import config_section, stored_bytes, stored_tensors
from telechat.checkpoint.save import write_folder
from telechat.models import TeleChatConfig
from telechat.ops.quantized import QuantizedWeight, WeightScheme
from telechat.quant.blockwise import LayerBits
from telechat.quant.config import QuantizeConfig
from telechat.quant.source import Source
from telechat.quant.unfinished import Unfinished

_NORMS = ("input_layernorm", "post_attention_layernorm")
_PROJECTIONS = {
    "self_attn.o_proj": "self_attention.dense",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}
_QUERY, _KEY, _VALUE = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
_EMBEDDING, _NORM = "model.embed_tokens.weight", "model.norm.weight"
_EMBEDDING_NORM = "transformer.word_embeddings_layernorm.weight"


def write_llama_folder(
    out: Path,
    source: Source,
    config: QuantizeConfig,
    layers: LayerBits,
    unfinished: Unfinished,
    *,
    max_shard_bytes: int,
) -> None:
    """Weights and config.json of a Llama; the tokenizer's files, which are there already, name no code."""
    writer = _Writer(source, layers, unfinished, WeightScheme(config.bits, config.groups))
    length = source.config.training_seqlen
    fields = llama_config(source.config, length, source.dtype)
    section = {**config_section(source.config, writer.scheme), "ignore": ["lm_head"]}
    fields = {**fields, SECTION: section}
    fields.pop("telechat_config", None)  # the way back to plain weights is not there
    write_folder(out, fields, writer.sizes(), writer.content, max_shard_bytes=max_shard_bytes)
    # The chat format, and where answers end, may stand in the generation settings.
    paths = [*out.glob("tokenizer*"), out / GENERATION_CONFIG]
    tokenizer_files = {path.name: path.read_bytes() for path in paths if path.is_file()}
    for name, content in stock_tokenizer(tokenizer_files).items():
        (out / name).write_bytes(content)


class _Writer:
    """Llama's tensors from finished blocks and the source."""

    def __init__(
        self, source: Source, layers: LayerBits, unfinished: Unfinished, scheme: WeightScheme
    ) -> None:
        self.source, self.layers, self.unfinished, self.scheme = source, layers, unfinished, scheme
        self.config: TeleChatConfig = source.config
        self._block: tuple[int, dict[str, Tensor]] | None = None

    def sizes(self) -> dict[str, int]:
        """About how many bytes each of Llama's weights takes, in the order of writing."""
        config, item = self.config, self.source.dtype.itemsize
        hidden, kv = config.hidden_size, config.num_kv_heads * config.head_dim
        shapes = {
            _QUERY: (hidden, hidden),
            _KEY: (kv, hidden),
            _VALUE: (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (config.ffn_hidden_size, hidden),
            "mlp.up_proj": (config.ffn_hidden_size, hidden),
            "mlp.down_proj": (hidden, config.ffn_hidden_size),
        }
        sizes = {_EMBEDDING: config.vocab_size * hidden * item}
        for index in range(config.num_layers):
            for name, shape in shapes.items():
                sizes[f"model.layers.{index}.{name}.weight"] = (
                    stored_bytes(shape, self.scheme) + shape[0] * item
                )
            sizes.update({f"model.layers.{index}.{name}.weight": hidden * item for name in _NORMS})
        sizes[_NORM] = hidden * item
        if not config.tie_word_embeddings:
            sizes[HEAD] = config.vocab_size * hidden * item
        return sizes

    def content(self, names: list[str]) -> dict[str, Tensor]:
        """The tensors on disk of some weights; a projection comes with its bias."""
        tensors: dict[str, Tensor] = {}
        for name in names:
            if name == _EMBEDDING:
                tensors[name] = self._plain(self._embedding())
            elif name in (_NORM, HEAD):
                tensors[name] = self._plain(
                    self.source.read("transformer.ln_f.weight" if name == _NORM else HEAD)
                )
            else:
                tensors.update(self._of_layer(name))
        return tensors

    def _plain(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.source.dtype, copy=True).contiguous()

    def _embedding(self) -> Tensor:
        rows = self.source.read(EMBEDDING)
        if not self.config.embed_layernorm:
            return rows
        gamma = self.source.read(_EMBEDDING_NORM).float()
        return torch.nn.functional.rms_norm(rows.float(), gamma.shape, gamma, self.config.norm_eps)

    def _of_layer(self, name: str) -> Mapping[str, Tensor]:
        _, _, index, part = name.split(".", 3)
        layer = part.removesuffix(".weight")
        source = f"transformer.h.{index}."
        if layer in _NORMS:
            return {name: self._plain(self.source.read(f"{source}{layer}.weight"))}
        if layer == _QUERY:
            weight = self._scaled(self._quantised(f"{source}self_attention.query.weight"))
        elif layer in (_KEY, _VALUE):
            fused = self._quantised(f"{source}self_attention.key_value.weight")
            weight = self._half(fused, is_value=layer == _VALUE)
        else:
            weight = self._quantised(f"{source}{_PROJECTIONS[layer]}.weight")
        tensors = stored_tensors(name, weight)
        bias = f"{source}{_PROJECTIONS.get(layer, '-')}.bias"
        has_bias = bias in self.source.names
        values = self.source.read(bias) if has_bias else torch.zeros(weight.rows)
        tensors[name.removesuffix("weight") + "bias"] = self._plain(values)
        return tensors

    def _quantised(self, name: str) -> QuantizedWeight:
        index = int(name.split(".")[2])
        if self._block is None or self._block[0] != index:
            self._block = index, self.unfinished.load(index)
        base = name.removesuffix("weight")
        stored = self._block[1]
        parts = {key.removeprefix(base): value for key, value in stored.items() if key.startswith(base)}
        weight = from_codes(Codes.unpack(parts, self.layers.bits[name], name=name))
        assert isinstance(weight, QuantizedWeight), name
        # Larger groups than were asked for come back where neighbours happen to agree; 8 bits may fit into 4.
        return _as_scheme(weight, self.scheme)

    def _scaled(self, weight: QuantizedWeight) -> QuantizedWeight:
        scale = query_scale(self.config, self.config.training_seqlen)
        scales = (weight.scales.float() * scale).to(weight.scales.dtype)
        return QuantizedWeight(weight.scheme, weight.qweight, scales)

    def _half(self, weight: QuantizedWeight, *, is_value: bool) -> QuantizedWeight:
        """The rows of all heads' keys or values; each head has its keys first."""
        pairs = torch.arange(weight.rows).view(-1, 2, self.config.head_dim)
        rows = pairs[:, int(is_value)].reshape(-1)
        return QuantizedWeight(weight.scheme, weight.qweight[rows], weight.scales[rows])


def _as_scheme(weight: QuantizedWeight, scheme: WeightScheme) -> QuantizedWeight:
    """The same numbers in these bits and groups, which must hold them."""
    if weight.scheme == scheme:
        return weight
    repeats = weight.scheme.group_size // scheme.group_size
    assert repeats >= 1 and weight.scheme.bits <= scheme.bits, (weight.scheme, scheme)
    scales = weight.scales.repeat_interleave(repeats, dim=1)
    return QuantizedWeight.from_integers(weight.integers(), scales, scheme)
