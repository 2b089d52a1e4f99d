"""How many bytes a number takes in each place of a run."""

from __future__ import annotations

from dataclasses import dataclass

from telechat.train.plan.request import PlanRequest

# fp32 scale for each group, beside the rounded numbers.
_SCALE_BYTES = 4


@dataclass(frozen=True)
class Formats:
    """Bytes of a number.

    Attributes:
        stored: weights that are trained, their gradients, norms and embeddings.
        frozen: weights of linear layers that are not trained.
        compute: inputs and outputs of matrix products.
        stream: the sums that run through the layers, and what norms give.
        moments: the optimiser's state for each trained number.
    """

    stored: float
    frozen: float
    compute: int
    stream: int
    moments: float

    @property
    def casts(self) -> bool:
        """Products are computed in a format that weights and stream are not kept in (autocast)."""
        return self.stored != self.compute


def formats_of(request: PlanRequest) -> Formats:
    """The formats of a run."""
    if request.task == "generate":
        size = 4 if request.precision == "fp32" else 2
        return Formats(size, _frozen(request, size), size, size, 0)
    if uses_master_copy(request):
        # fp16 or bf16 weights, with an fp32 copy beside the two moments.
        size = 4 if request.precision == "fp32" else 2
        return Formats(size, size, size, size, 8 if size == 4 else 12)
    stored = 2 if request.precision == "bf16-pure" else 4
    compute = 4 if request.precision == "fp32" else 2
    moments = {"adamw": 2 * stored, "adamw-8bit": 2, "muon": stored}[request.optimizer]
    return Formats(stored, _frozen(request, compute), compute, stored, moments)


def uses_master_copy(request: PlanRequest) -> bool:
    """Whether DeepSpeed holds the weights, which keeps another copy of them in its optimiser."""
    return request.program == "original" or request.layout.engine == "deepspeed"


def _frozen(request: PlanRequest, size: int) -> float:
    if request.weight_bits is None:
        return size
    group_size = request.lora.group_size if request.lora else 32
    return request.weight_bits / 8 + _SCALE_BYTES / group_size
