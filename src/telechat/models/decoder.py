"""The TeleChat decoder, dense and mixture-of-experts, in plain torch.

Knows its mathematics; knows no ranks, files or sampling. Shapes: B batch, S new tokens, T visible tokens,
V vocabulary. Module names are the official parameter names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from telechat.errors import ConfigError, PromptError
from telechat.layers.attention import Attend, AttentionInputs, Remember, SelfAttention
from telechat.layers.mlp import SwiGLU
from telechat.layers.moe import MixtureOfExperts, Routing
from telechat.layers.norm import RMSNorm
from telechat.layers.rotary import RotaryTables
from telechat.models.cache import KVCache
from telechat.models.config import TeleChatConfig
from telechat.ops.attention import AttentionChoice, AttentionFunction

Store = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
# As `Attend`, with the layer's number first.
LayerAttend = Callable[[int, Tensor, Tensor], Tensor]
RopeMode = Literal["official", "consistent", "static"]


@dataclass
class Trace:
    """What a caller wants to see of one forward call.

    Attributes:
        hidden_states: [B, S, hidden] each: embeddings, all blocks but the last, final norm.
        routings: one per mixture layer.
    """

    hidden_states: list[Tensor] = field(default_factory=list)
    routings: list[Routing] = field(default_factory=list)


class DecoderBlock(nn.Module):
    """Attention and feed-forward, each behind an RMSNorm and beside a residual."""

    def __init__(self, config: TeleChatConfig, attention: AttentionFunction) -> None:
        super().__init__()
        self.residual_post_layernorm = config.residual_post_layernorm
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attention = SelfAttention(
            config.hidden_size, config.num_heads, config.num_kv_heads, attention, config.attention_dropout
        )
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp: SwiGLU | MixtureOfExperts
        if config.moe:
            self.mlp = MixtureOfExperts(config.hidden_size, config.ffn_hidden_size, config.moe)
        else:
            self.mlp = SwiGLU(config.hidden_size, config.ffn_hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        x_BSD: Tensor,
        inputs: AttentionInputs,
        remember: Remember | None = None,
        routings: list[Routing] | None = None,
        attend: Attend | None = None,
    ) -> Tensor:
        """[B, S, hidden] -> [B, S, hidden]; `remember` and `attend` as in `SelfAttention`."""
        normed = self.input_layernorm(x_BSD)
        residual = normed if self.residual_post_layernorm else x_BSD
        x_BSD = residual + self.dropout(self.self_attention(normed, inputs, remember, attend))
        normed = self.post_attention_layernorm(x_BSD)
        residual = normed if self.residual_post_layernorm else x_BSD
        if isinstance(self.mlp, MixtureOfExperts):
            out: Tensor = self.mlp(normed, routings, inputs.is_real)
        else:
            out = self.mlp(normed)
        out = residual + self.dropout(out)
        return out


class Transformer(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, config: TeleChatConfig, attention: AttentionFunction) -> None:
        super().__init__()
        weight = torch.empty(config.vocab_size, config.hidden_size)
        if not weight.is_meta:  # drawing numbers that have no memory would import torch's compiler: a second
            nn.init.normal_(weight)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)
        self.word_embeddings_layernorm = (
            RMSNorm(config.hidden_size, config.norm_eps) if config.embed_layernorm else None
        )
        self.h = nn.ModuleList(DecoderBlock(config, attention) for _ in range(config.num_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.norm_eps)
        self.gradient_checkpointing = False

    @property
    def blocks(self) -> list[DecoderBlock]:
        """`h`, typed."""
        return cast("list[DecoderBlock]", list(self.h))

    def forward(
        self,
        input_ids: Tensor,
        inputs: AttentionInputs,
        store: Store | None = None,
        trace: Trace | None = None,
        *,
        attend: LayerAttend | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, S, hidden].

        Args:
            store: takes a layer's new keys and values and returns all.
            attend: replaces attention and `store`, see `SelfAttention`.
            wanted: int64 [L] columns; only these are normed and returned, [B, L, hidden].
        """
        x: Tensor = self.word_embeddings(input_ids)
        if self.word_embeddings_layernorm is not None:
            x = self.word_embeddings_layernorm(x)
        for index, block in enumerate(self.h):
            if trace is not None:
                trace.hidden_states.append(x)
            remember = partial(store, index) if store is not None else None
            attend_here = partial(attend, index) if attend is not None else None
            # A list of its own for each block: checkpointing runs the block a second time in the backward
            # pass.
            routings: list[Routing] | None = [] if trace is not None else None
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, inputs, remember, routings, attend_here, use_reentrant=False)
            else:
                x = block(x, inputs, remember, routings, attend_here)
            if trace is not None and routings:
                trace.routings.append(routings[0])
        if wanted is not None:
            x = x[:, wanted]
        x = self.ln_f(x)
        if trace is not None:
            trace.hidden_states.append(x)
        return x


class TeleChatModel(nn.Module):
    """A TeleChat language model.

    `rope_mode` says what happens past `training_seqlen`, where the rotary table depends on the length:
    `official` gives each call the table of its total length and leaves cached keys as they are; `consistent`
    recomputes the whole sequence whenever its table changes, so cached decoding equals a call without cache
    (slow); `static` uses the one table of `static_length` (by default `training_seqlen`) for every call up to
    that length, for serving at a declared maximum. Within `training_seqlen` the first two are the same, and
    `static` as well unless `static_length` is larger.

    Attributes:
        attention_choice: the attention form that was chosen and why; None when one was handed in.
        static_length: in tokens; see above.
    """

    def __init__(
        self,
        config: TeleChatConfig,
        *,
        attention: AttentionFunction,
        rope_mode: RopeMode = "official",
        static_length: int | None = None,
    ) -> None:
        super().__init__()
        if rope_mode not in get_args(RopeMode):
            raise ConfigError(
                f"rope mode '{rope_mode}' is unknown.", hint="Choose official, consistent or static."
            )
        if static_length is not None and static_length < 1:
            raise ConfigError(f"static_length is {static_length}; it must be positive.")
        self.config = config
        self.rope_mode = rope_mode
        self.static_length = config.training_seqlen if static_length is None else static_length
        self.attention_choice: AttentionChoice | None = None
        self.transformer = Transformer(config, attention)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rotary = RotaryTables(config.rope, config.head_dim)

    @property
    def has_own_head(self) -> bool:
        """The head is a module; a tied one is not, unless somebody gave it a form of its own."""
        return "lm_head" in self._modules

    @property
    def output_weight(self) -> Tensor:
        """The head's weight [V, hidden]; the embedding itself when tied."""
        return self.lm_head.weight if self.has_own_head else self.transformer.word_embeddings.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.word_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the embedding, and of all weights that are not quantised."""
        return self.transformer.word_embeddings.weight.dtype

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        last_only: bool = False,
        trace: Trace | None = None,
    ) -> Tensor:
        """Logits of every new token.

        Args:
            input_ids: int64 [B, S].
            attention_mask: 1 for real tokens, 0 for padding: [B, S], or [B, past + S] with a cache.
            positions: rotary positions int64 [B, S]; by default a token's column, padding counted, as in the
                official code.
            cache: keys and values of earlier tokens; grows by S tokens in each of its first B rows.
            last_only: compute the logits of the last token only.
            trace: filled with intermediate results when given.

        Returns:
            Logits [B, S, V] ([B, 1, V] with `last_only`) in the model's dtype.

        Raises:
            PromptError: ids outside the vocabulary, or a shape that is not [B, S].
            ContextLengthError: the cache is too short.
        """
        x = self.hidden_states(input_ids, attention_mask, positions, cache, trace=trace)
        if last_only:
            x = x[:, -1:]
        return self.project(x)

    def project(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of final hidden states [..., hidden]."""
        if not self.has_own_head:
            return F.linear(hidden, self.transformer.word_embeddings.weight)
        logits: Tensor = self.lm_head(hidden)
        return logits

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        trace: Trace | None = None,
    ) -> Tensor:
        """Final hidden states [B, S, hidden]; arguments as in `forward`."""
        self._check_ids(input_ids)
        B, S = input_ids.shape
        _check_shapes(input_ids, attention_mask, positions, past=max(cache.lengths[:B]) if cache else 0)
        if cache is None:
            columns = torch.arange(S, device=input_ids.device).expand(B, S)
            lengths = [S] * B
            inputs = self._attention_inputs(columns, lengths, attention_mask, positions, is_square=True)
            hidden: Tensor = self.transformer(input_ids, inputs, None, trace)
            return hidden
        is_first = max(cache.lengths[:B]) == 0
        columns = cache.record(input_ids, attention_mask)
        lengths = cache.lengths[:B]
        if self.rope_mode == "consistent" and not is_first and max(lengths) > self.config.training_seqlen:
            return self._recompute(cache, columns, positions, trace)
        visible = cache.visible[:B, : max(lengths)] if cache.has_padding else None
        inputs = self._attention_inputs(columns, lengths, visible, positions, is_square=is_first)
        hidden = self.transformer(input_ids, inputs, cache.store, trace)
        return hidden

    def _recompute(
        self, cache: KVCache, new_columns_BS: Tensor, positions: Tensor | None, trace: Trace | None
    ) -> Tensor:
        """Hidden states of the last S tokens of each row, with every key rotated by the row's present table.

        Earlier tokens keep their distance to the last one's position (0 for those in left padding).
        """
        B, S = new_columns_BS.shape
        lengths = cache.lengths[:B]
        longest = max(lengths)
        device = cache.token_ids.device
        # Columns past a shorter row's end are computed and not read; its table has no rows for them.
        columns = torch.arange(longest, device=device).minimum(
            torch.tensor(lengths, device=device)[:, None] - 1
        )
        if positions is not None:
            positions = (columns + (positions - new_columns_BS)[:, -1:]).clamp(min=0)
        visible = cache.visible[:B, :longest] if cache.has_padding else None
        inputs = self._attention_inputs(columns, lengths, visible, positions, is_square=True)
        x = self.transformer(cache.token_ids[:B, :longest], inputs, cache.overwrite, trace)
        return torch.stack([x[row, end - S : end] for row, end in enumerate(lengths)])

    def _attention_inputs(
        self,
        columns_BS: Tensor,
        lengths: list[int],
        visible_BT: Tensor | None,
        positions: Tensor | None,
        *,
        is_square: bool,
    ) -> AttentionInputs:
        """Rotary rows and mask of a call. `is_square` says that the new tokens are all tokens, in order."""
        rope_lengths = (
            [max(self.static_length, n) for n in lengths] if self.rope_mode == "static" else lengths
        )
        if positions is None:
            positions = columns_BS
        else:
            self._check_positions(positions, max(*rope_lengths, self.config.training_seqlen))
        cos, sin = self.rotary.lookup(positions, rope_lengths)
        if visible_BT is not None and bool(visible_BT.all()):
            visible_BT = None
        if is_square and visible_BT is None:
            return AttentionInputs(cos, sin, None, is_causal=columns_BS.shape[1] > 1)
        if columns_BS.shape[1] == 1 and visible_BT is None and len(set(lengths)) == 1:
            return AttentionInputs(cos, sin, None, is_causal=False)  # one new token sees everything
        keys = torch.arange(max(lengths), device=columns_BS.device)
        seen = keys <= columns_BS[:, :, None]
        if visible_BT is not None:
            seen = seen & visible_BT[:, None].bool()
        dtype = self._compute_dtype()
        mask = torch.zeros(seen.shape, dtype=dtype, device=columns_BS.device)
        # Finite, so that a row that sees nothing (a padded query) becomes uniform and not NaN.
        mask.masked_fill_(~seen, torch.finfo(dtype).min)
        return AttentionInputs(cos, sin, mask[:, None], is_causal=False)

    def _check_positions(self, positions: Tensor, limit: int) -> None:
        """Like `_check_ids`, on the CPU only."""
        if not positions.is_cpu:
            return
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= limit:
            raise PromptError(f"positions run from {low} to {high}; they must be in [0, {limit}).")

    def _compute_dtype(self) -> torch.dtype:
        """dtype of queries and keys. Autocast would round a mask of the weights' dtype to -inf."""
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype

    def _check_ids(self, input_ids: Tensor) -> None:
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise PromptError(f"input_ids has shape {tuple(input_ids.shape)}; expected [batch, length >= 1].")
        # Reading the ids back would stall an accelerator at every step; there the caller's tokenizer vouches.
        if input_ids.is_cpu:
            low, high = int(input_ids.min()), int(input_ids.max())
            if low < 0 or high >= self.config.vocab_size:
                wrong = low if low < 0 else high
                raise PromptError(f"token id {wrong} is outside the vocabulary of {self.config.vocab_size}.")


def _check_shapes(
    input_ids: Tensor, attention_mask: Tensor | None, positions: Tensor | None, *, past: int
) -> None:
    """Refuse masks and positions that would be broadcast to something nobody meant."""
    B, S = input_ids.shape
    if attention_mask is not None and tuple(attention_mask.shape) not in ((B, S), (B, past + S)):
        raise PromptError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; expected {(B, S)} for the new tokens"
            + (f" or {(B, past + S)} for all." if past else ".")
        )
    if positions is not None and tuple(positions.shape) != (B, S):
        raise PromptError(f"positions has shape {tuple(positions.shape)}; expected {(B, S)}.")
