"""From finished requests to what their caller sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from telechat.engine.outputs import Completion, EmbeddingOutput, Keep, Kept, RequestOutput
from telechat.engine.request import Request


def request_output(requests: Sequence[Request]) -> RequestOutput:
    """The answers to one prompt; raises the error of one that failed."""
    for request in requests:
        if request.error:
            raise request.error
    first = requests[0]
    reports_prompt = first.num_prompt_logprobs is not None
    return RequestOutput(
        first.prompt_token_ids,
        [_completion(request) for request in requests],
        prompt_logprobs=first.prompt_logprobs if reports_prompt else None,
        num_cached_tokens=first.num_cached_tokens or 0,
    )


def embedding_output(request: Request, *, normalize: bool) -> EmbeddingOutput:
    """The vector of one prompt, of length 1 with `normalize`; raises its error if it failed."""
    if request.error:
        raise request.error
    assert request.pooled is not None
    vector = request.pooled / len(request.prompt_token_ids) if request.pooling == "mean" else request.pooled
    if normalize:
        vector = F.normalize(vector, dim=0)
    return EmbeddingOutput(request.prompt_token_ids, vector.float().cpu())


def _completion(request: Request) -> Completion:
    assert request.finish_reason is not None
    return Completion(
        text=request.text,
        token_ids=request.token_ids,
        finish_reason=request.finish_reason,
        logprobs=request.logprobs if request.params.logprobs is not None else None,
        stop_reason=request.stop_reason,
        logits=_kept(request.kept_logits, request.keep_logits),
        scores=_kept(request.kept_scores, request.keep_scores),
    )


def _kept(steps: list[Any], keep: Keep) -> Kept | None:
    if keep is None:
        return None
    return torch.stack(steps) if keep == "all" else steps
