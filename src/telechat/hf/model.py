"""`TelechatForCausalLM`: the TeleChat decoder as a transformers model.

Parameters have their official names, so that `from_pretrained` and `save_pretrained` read and write official
folders. Loading, placement, generation and training are transformers'; the mathematics is `telechat.models`.
"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from telechat.checkpoint.loader import config_from
from telechat.checkpoint.names import is_tolerated
from telechat.checkpoint.weights import open_weights
from telechat.errors import CheckpointError, ConfigError, PromptError
from telechat.hf.cache import HostedCache
from telechat.hf.chat import ChatMixin
from telechat.hf.config import HUB_ARGUMENTS, TelechatConfig
from telechat.hf.decoder import HostedDecoder, LateAttention, attention_name
from telechat.hf.packed import is_packed_folder, load_packed
from telechat.layers.int8 import DynamicInt8Linear, StaticInt8Linear
from telechat.layers.moe import Router
from telechat.layers.quantized import QuantizedLinear
from telechat.models import TeleChatConfig, TeleChatModel, Trace

_QUANTISED = (QuantizedLinear, StaticInt8Linear, DynamicInt8Linear)


class TelechatForCausalLM(ChatMixin, PreTrainedModel, GenerationMixin):
    """A TeleChat language model of any generation.

    Rotary positions are those of the official code: a token's column, padding counted, unless `position_ids`
    says otherwise. `generate` passes positions that leave left padding out, so that a padded row gives what
    it gives alone. Past `training_seqlen` cached keys keep their rotation, as in the official code;
    `use_cache=False` recomputes everything at every step.
    """

    config_class = TelechatConfig
    config: TelechatConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _no_split_modules = ("DecoderBlock",)
    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _can_compile_fullgraph = False

    def __init__(self, config: TelechatConfig) -> None:
        attention = attention_name(config._attn_implementation)  # before transformers fills it in
        super().__init__(config)
        fields = config.to_telechat()
        self._hold(HostedDecoder(fields, attention=LateAttention(attention)))
        self.transformer = self._decoder.transformer
        self.lm_head = nn.Linear(fields.hidden_size, fields.vocab_size, bias=False)
        self.post_init()

    def _hold(self, decoder: HostedDecoder) -> None:
        """Keep the decoder without making it a child: its parameters are ours, under the official names."""
        object.__setattr__(self, "_decoder", decoder)

    _decoder: HostedDecoder

    def adopt(self, model: TeleChatModel) -> None:
        """Take another model's modules in the place of our own, which may be on `meta`."""
        self._decoder.transformer = self.transformer = model.transformer
        if model.has_own_head:
            self.lm_head = model.lm_head
        else:
            self.lm_head.weight = model.transformer.word_embeddings.weight

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, for plain weights.

        Raises:
            CheckpointError: the weights are quantised; their folder is what can be copied.
        """
        if any(isinstance(module, _QUANTISED) for module in self.modules()):
            raise CheckpointError(
                "A quantised model is not saved from here.", hint=f"Copy {self.config.name_or_path}."
            )
        return super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *model_args: Any, **kwargs: Any) -> Any:
        """As in transformers, but a tensor that is missing or extra is an error, never filled in or ignored.

        `trust_remote_code` is accepted and has no effect: code in a model folder is never run.

        Raises:
            CheckpointError: names the tensors.
            ConfigError: a config.json that cannot be.
        """
        kwargs.pop("trust_remote_code", None)  # transformers would run the folder's custom_generate
        wants_info = kwargs.pop("output_loading_info", False)
        config, kwargs = _complete_config(os.fspath(name), kwargs.pop("config", None), kwargs)
        if is_packed_folder(os.fspath(name)):
            packed = load_packed(cls, os.fspath(name), config, kwargs)
            return (packed, {"missing_keys": [], "unexpected_keys": []}) if wants_info else packed
        model, info = super().from_pretrained(
            name, *model_args, config=config, output_loading_info=True, **kwargs
        )
        if model.config.to_dict().get("quantization_config") is None:
            _refuse_gaps(str(name), info, may_mismatch=bool(kwargs.get("ignore_mismatched_sizes")))
        return (model, info) if wants_info else model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits, and the loss when there are labels.

        Args:
            input_ids: int64 [B, S].
            attention_mask: 1 for real tokens, [B, past + S].
            position_ids: rotary positions int64 [B or 1, S]; by default the columns.
            past_key_values: keys and values of earlier tokens; grows.
            inputs_embeds: refused: tokens are looked up here. peft always names the argument.
            labels: int64 [B, S]; each is predicted from the tokens before it, -100 counts for nothing.
            use_cache: return keys and values; by default the config's, and never in training.
            output_attentions: refused: attention runs fused and keeps no weights.
            output_hidden_states: embeddings, every block but the last, final norm: n_layer + 1 of [B, S,
                hidden].
            return_dict: False for a tuple.
            logits_to_keep: the last so many positions only, or the positions at these indices; 0 keeps all.
            num_items_in_batch: divisor of the loss, when a batch is spread over several calls.

        Returns:
            `logits` [B, kept, V]; `loss` fp32 scalar.
        """
        self._refuse_unavailable(output_attentions, inputs_embeds)
        past_key_values, is_returned = self._cache_of_call(past_key_values, use_cache)
        if position_ids is not None:
            position_ids = position_ids.expand(input_ids.shape)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        trace = Trace() if output_hidden_states else None
        cache = None if past_key_values is None else HostedCache(past_key_values, len(input_ids))
        hidden = self._decoder.hidden_states(input_ids, attention_mask, position_ids, cache, trace=trace)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None if labels is None else self._loss_of(logits, labels, num_items_in_batch)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values if is_returned else None,
            hidden_states=tuple(trace.hidden_states) if trace else None,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _refuse_unavailable(self, output_attentions: bool | None, inputs_embeds: Tensor | None) -> None:
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ConfigError(
                "output_attentions is not available: attention weights are not kept.",
                hint="Leave output_attentions out.",
            )
        if inputs_embeds is not None:
            raise ConfigError("inputs_embeds is not available.", hint="Give input_ids.")

    def _cache_of_call(self, given: Cache | None, use_cache: bool | None) -> tuple[Cache | None, bool]:
        """(the cache that a call uses, whether the call returns it)."""
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and not self.training
        if use_cache and given is None:
            given = DynamicCache(config=self.config)
        if given is not None and self.training and self.transformer.gradient_checkpointing:
            raise PromptError(
                "A cache and gradient checkpointing exclude each other: blocks run twice.",
                hint="Pass use_cache=False.",
            )
        return given, use_cache

    def _loss_of(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Any:
        """As transformers computes it, in fp32."""
        return self.loss_function(
            logits=logits,
            labels=labels,
            vocab_size=logits.shape[-1],
            num_items_in_batch=num_items_in_batch,
        )

    def create_masks_for_generate(self, *, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
        """The mask as it is: the decoder makes its own from [B, T], for static caches too."""
        return attention_mask

    def get_input_embeddings(self) -> nn.Module:
        """The embedding [V, hidden]."""
        return self.transformer.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embedding."""
        self.transformer.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the head."""
        self.lm_head = value

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the decoder then accepts the new ids."""
        embedding: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        self._decoder.config = self._decoder.config.replace(vocab_size=embedding.num_embeddings)
        return embedding

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Router):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)


def _complete_config(
    name: str, config: TelechatConfig | None, kwargs: dict[str, Any]
) -> tuple[TelechatConfig, dict[str, Any]]:
    """The config, with what only the tensor names of a local folder tell, and the remaining arguments."""
    if config is None:
        # What the loader needs again after the config has used it.
        again = {key: kwargs[key] for key in (*HUB_ARGUMENTS, "dtype", "torch_dtype") if key in kwargs}
        config, kwargs = TelechatConfig.from_pretrained(name, return_unused_kwargs=True, **kwargs)
        kwargs.update(again)
    assert config is not None
    raw = config.to_dict()
    if os.path.isdir(name) and raw.get("quantization_config") is None and _may_have_experts(raw):
        shapes = {key: stored.shape for key, stored in open_weights(name).tensors.items()}
        fields = config_from({**raw, "architectures": None}, shapes)
        if fields.moe:
            config.expert_num = fields.moe.num_experts
    return config, kwargs


def _may_have_experts(raw: dict[str, Any]) -> bool:
    """A mixture whose config does not say how many experts it has; the number has no published name."""
    return TeleChatConfig.expert_count(raw) is None and any("expert" in key or "moe" in key for key in raw)


def _refuse_gaps(name: str, info: dict[str, Any], *, may_mismatch: bool) -> None:
    missing = sorted(info["missing_keys"])
    if may_mismatch:
        mismatched = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
        missing = [key for key in missing if key not in mismatched]
    extra = [key for key in sorted(info["unexpected_keys"]) if not is_tolerated(key)]
    for verb, keys, end in (("lacks", missing, ""), ("holds", extra, ", which this model has no place for")):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise CheckpointError(
                f"{name} {verb} {', '.join(keys[:3])}{more}{end}.",
                hint="Check that config.json belongs to these weights, and that the download is complete.",
            )
