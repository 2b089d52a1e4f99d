"""What the head takes: the logits of some words at a time, of all of them in the original program.

Knows nothing of layers.
"""

from __future__ import annotations

from telechat.train.losses.cross_entropy import chunk_width, padded_tokens
from telechat.train.plan.activations import sizes_of
from telechat.train.plan.formats import formats_of
from telechat.train.plan.request import PlanRequest

_FLOAT = 4
# The original program's copies of all logits at the worst moment: logits, their log-softmax, the gradients of
# both.
_ORIGINAL_COPIES = 4


def logits_bytes(request: PlanRequest) -> tuple[float, float]:
    """Bytes of the head's forward and of its backward pass on one rank."""
    sizes, formats = sizes_of(request), formats_of(request)
    vocabulary = -(-request.config.vocab_size // request.layout.tp)
    if request.program == "original":
        whole = sizes.tokens * vocabulary * formats.compute
        return 3.0 * whole, float(_ORIGINAL_COPIES * whole)
    on_cpu = not request.on_accelerator
    tokens = padded_tokens(max(1, round(sizes.tokens * request.learnt_share)), on_cpu=on_cpu)
    width = chunk_width(tokens, vocabulary, on_cpu=on_cpu)
    c = formats.compute
    buffers = tokens * width * (c if c == _FLOAT else c + _FLOAT)
    words = width * request.config.hidden_size
    rows = tokens * request.config.hidden_size
    weights = words * c if formats.stored != c else 0
    # The learnt tokens' hidden states in the stream's format and in that of products.
    states = rows * (formats.stream + (c if formats.stream != c else 0))
    forward = buffers + weights + states
    trains_head = request.lora is None
    backward = forward + rows * (_FLOAT + c) + (words * c if trains_head else 0)
    return float(forward), float(backward)
