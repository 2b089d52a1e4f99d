"""Self-attention with TeleChat's fused, per-head interleaved key/value projection.

Shapes: B batch, S new tokens, T visible tokens, H query heads, K key/value heads, d head dimension.
Knows nothing of how keys are stored: `remember` turns new keys and values into all visible ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from telechat.layers.rotary import rotate
from telechat.ops.attention import AttentionFunction

Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Attention over keys that are kept elsewhere: queries [B, S, H, d] and the fused keys and values
# [B, S, K, 2, d], neither rotated yet and both free to be changed in place -> [B, S, H, d].
Attend = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionInputs:
    """What every layer of one forward call shares.

    Attributes:
        cos_BSd, sin_BSd: fp32 rotary rows of the new tokens.
        mask: additive mask [B or 1, 1, S, T], or None.
        is_causal: the square causal mask applies; excludes `mask`.
        is_real: bool [B, S], False for padding, which a mixture leaves out of balance and capacity; None
            where there is none.
    """

    cos_BSd: Tensor
    sin_BSd: Tensor
    mask: Tensor | None
    is_causal: bool
    is_real: Tensor | None = None


class SelfAttention(nn.Module):
    """Multi-head, grouped-query or multi-query attention; only the output projection `dense` has a bias.

    `key_value` rows are interleaved per key/value head: head h owns rows h*2d..h*2d+d (key) and the d rows
    after (value), so its output reshapes to [..., K, 2, d].
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        attention: AttentionFunction,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = hidden_size // num_heads
        self.attention = attention
        self.dropout = dropout
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key_value = nn.Linear(hidden_size, 2 * num_kv_heads * self.head_dim, bias=False)
        self.dense = nn.Linear(hidden_size, hidden_size, bias=True)

    def forward(
        self,
        x_BSD: Tensor,
        inputs: AttentionInputs,
        remember: Remember | None = None,
        attend: Attend | None = None,
    ) -> Tensor:
        """[B, S, hidden] -> [B, S, hidden].

        Args:
            remember: maps new keys and values [B, S, K, d] to all visible ones [B, T, K, d].
            attend: does everything between the projections instead; the other two are not used then.
        """
        B, S, _ = x_BSD.shape
        q = self.query(x_BSD).view(B, S, self.num_heads, self.head_dim)
        kv = self.key_value(x_BSD).view(B, S, self.num_kv_heads, 2, self.head_dim)
        out = self._attend(q, kv, inputs, remember) if attend is None else attend(q, kv)
        projected: Tensor = self.dense(out.reshape(B, S, -1))
        return projected

    def _attend(
        self, q: Tensor, kv_BSK2d: Tensor, inputs: AttentionInputs, remember: Remember | None
    ) -> Tensor:
        k, v = kv_BSK2d.unbind(3)
        q = rotate(q, inputs.cos_BSd, inputs.sin_BSd)
        k = rotate(k, inputs.cos_BSd, inputs.sin_BSd)
        if remember is not None:
            k, v = remember(k, v)
        dropout_p = self.dropout if self.training else 0.0
        return self.attention(q, k, v, mask=inputs.mask, is_causal=inputs.is_causal, dropout_p=dropout_p)
