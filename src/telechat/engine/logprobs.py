"""Log-probabilities of tokens by the model's own distribution. Knows nothing of requests or sampling.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from telechat.engine.outputs import TokenLogprob


def token_logprobs(logits_NV: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprob]:
    """For each row the log-probability of its token, and of as many of the likeliest as `num_top` says.

    Args:
        logits_NV: fp32 [N, V].
        token_ids, num_top: one per row.
    """
    if not token_ids:
        return []
    logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
    chosen = logprobs_NV.gather(1, torch.tensor(token_ids, device=logits_NV.device)[:, None])[:, 0].tolist()
    best = logprobs_NV.topk(min(max(num_top), logits_NV.shape[1]))
    rows = zip(token_ids, chosen, best.indices.tolist(), best.values.tolist(), num_top, strict=True)
    return [
        TokenLogprob(token_id, logprob, tuple(zip(ids[:count], values[:count], strict=True)))
        for token_id, logprob, ids, values, count in rows
    ]
