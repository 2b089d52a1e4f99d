"""One rank's part of a model as modules: its layers, heads, experts and vocabulary, in place of the whole.

Applied from outside: parameters become the parts that `Division` says, and hooks gather and scatter the
sequence around blocks that tensor-parallel ranks share. Between those blocks each rank has a part of the
sequence, and so of norms, residuals and dropout. Knows nothing of ZeRO, optimisers or schedules.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from telechat.errors import ConfigError
from telechat.layers.moe import MixtureOfExperts
from telechat.layers.quantized import QuantizedLinear
from telechat.models import TeleChatModel, Trace
from telechat.parallel.sharding import Layout, local_heads, vocab_range
from telechat.train.adapters import updates
from telechat.train.distributed.collectives import gather_sequence, scatter_sequence_sum
from telechat.train.distributed.context import ContextShare, Share
from telechat.train.distributed.division import EMBEDDING, Division
from telechat.train.distributed.experts import SharedMixture
from telechat.train.distributed.groups import TrainGroups
from telechat.train.distributed.vocabulary import VocabularyCrossEntropy, VocabularyEmbedding
from telechat.train.objective import CrossEntropy, Objective
from telechat.train.precision import Precision

HEAD = "lm_head.weight"


class LayerElsewhere(nn.Module):
    """Stands where another stage's layer would be."""

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """x as it is."""
        return x


class Stage(nn.Module):
    """A pipeline stage, or the whole model where there is one: micro batch in, hidden states or loss out.

    Args:
        model: what `part_of` returned.
        objective: on the last stage what is minimised, else None.
        context: how rows are shared.
        tp: tensor-parallel ranks, all of which compute a mixture's balancing loss.

    Attributes:
        shares: the micro batches of the running step; `forward` is told their numbers.
        balances: fp32 [] balancing loss of every micro batch that was computed since this was emptied.
    """

    def __init__(
        self,
        model: TeleChatModel,
        objective: Objective | VocabularyCrossEntropy | None,
        context: ContextShare,
        precision: Precision,
        *,
        tp: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.context = context
        self.precision = precision
        self.tp = tp
        self.shares: list[Share] = []
        self.balances: dict[int, Tensor] = {}

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        """Hidden states [B, s / tp, hidden], or on the last stage the summed loss [1].

        Args:
            x: ids int64 [B, s] on the first stage, else what the stage before returned.
            number: int64 [1], on the CPU: which of `shares` this is.
        """
        place = int(number)
        share = self.shares[place]
        trace = Trace() if self.model.config.moe and self.training else None
        with torch.autocast(x.device.type, self.precision.compute, enabled=self.precision.autocasts):
            inputs, attend = self.context.inputs(self.model.rotary, share)
            x = self.model.transformer(x, inputs, None, trace, attend=attend)
            if trace is not None and trace.routings:
                balance = torch.stack([routing.aux_loss for routing in trace.routings]).sum()
                self.balances[place] = balance.detach()
                weight = share.balance_weight / self.tp
                x = _AddLoss.apply(x, balance * weight)  # type: ignore[no-untyped-call]
            if self.objective is None:
                return x
            # Not a view: FSDP hangs its hooks on what a module returns.
            return torch.stack([self.objective.loss(x, self.model.output_weight, share.batch)])

    def official_names(self) -> dict[str, str]:
        """Name of each parameter in this module -> its official name."""
        is_tied = self.model.config.tie_word_embeddings
        return {
            f"model.{name}": EMBEDDING if is_tied and name == HEAD else name
            for name, _ in self.model.named_parameters()
        }


class _AddLoss(torch.autograd.Function):
    """Hidden states as they are, with a loss beside them that is differentiated whatever becomes of them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return grads[0], torch.ones_like(loss)


def part_of(whole: TeleChatModel, division: Division, groups: TrainGroups, stage: int) -> TeleChatModel:
    """This rank's part of a model for one stage; its parameters are on `meta`.

    Args:
        whole: with all parameters on `meta`; stays as it is.

    Raises:
        ConfigError: quantised weights or DoRA, where ranks would have to cut them.
    """
    model = copy.deepcopy(whole)
    layout, place, config = division.layout, groups.place, model.config
    if layout.tp * layout.ep > 1 and any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise ConfigError(
            f"parallel.tp {layout.tp} and ep {layout.ep} cannot cut quantised weights.",
            hint="Use parallel.dp, pp or cp for training on quantised weights.",
        )
    if layout.tp > 1 and any(update.magnitude is not None for update in updates(model)):
        raise ConfigError(
            f"lora.dora needs whole rows of every weight; parallel.tp {layout.tp} cuts them.",
            hint="Use parallel.dp, pp or cp with DoRA.",
        )
    _keep_layers(model, division, stage)
    heads, kv_heads = local_heads(config, Layout(tp=layout.tp))
    for block in model.transformer.blocks:
        if isinstance(block, LayerElsewhere):
            continue
        block.self_attention.num_heads, block.self_attention.num_kv_heads = heads, kv_heads
        if isinstance(block.mlp, MixtureOfExperts):
            block.mlp = SharedMixture(
                block.mlp, division.held_experts(place), expert_group=groups.ep, context_group=groups.cp
            )
        if groups.tp is not None:
            for module in (block.self_attention, block.mlp):
                _share_sequence(module, groups.tp)
    if groups.tp is not None and stage == 0:
        start, _ = vocab_range(config, Layout(tp=layout.tp), place.tp)
        weight = cast("nn.Parameter", model.transformer.word_embeddings.weight)
        model.transformer.word_embeddings = cast("Any", VocabularyEmbedding(weight, start, groups.tp))
    _cut_parameters(model, division, groups)
    return model


def put_on_meta(model: TeleChatModel) -> None:
    """Leave a model its structure and buffers, without the memory of its parameters."""
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        empty = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        model.get_submodule(owner).register_parameter(leaf, empty)


def shared_objective(
    objective: Objective, division: Division, groups: TrainGroups
) -> Objective | VocabularyCrossEntropy:
    """The objective for a rank of the last stage.

    Raises:
        ConfigError: it needs whole rows or the whole head on one rank, and the layout divides them.
    """
    layout = division.layout
    if layout.num_model_ranks > 1 and type(objective) is not CrossEntropy:
        raise ConfigError(
            f"{type(objective).__name__} compares whole answers on one process; the layout has "
            f"tp {layout.tp}, pp {layout.pp}, cp {layout.cp}.",
            hint="Use parallel.dp (with zero_stage 3) or ep for this objective.",
        )
    if groups.tp is None:
        return objective
    start, _ = vocab_range(division.config, Layout(tp=layout.tp), groups.place.tp)
    assert isinstance(objective, CrossEntropy)
    return VocabularyCrossEntropy(start, groups.tp, z_loss=objective.z_loss)


def _keep_layers(model: TeleChatModel, division: Division, stage: int) -> None:
    """Drop what belongs to other stages; layers keep their numbers."""
    transformer, last = model.transformer, len(division.stages) - 1
    for number in range(len(transformer.h)):
        if number not in division.stages[stage]:
            transformer.h[number] = LayerElsewhere()
    if stage > 0:
        head = transformer.word_embeddings.weight
        transformer.word_embeddings = cast("Any", nn.Identity())
        transformer.word_embeddings_layernorm = None
        if stage == last and not model.has_own_head:
            model.lm_head = nn.Linear(head.shape[1], head.shape[0], bias=False, device=head.device)
            model.lm_head.weight = nn.Parameter(head, requires_grad=head.requires_grad)
    if stage < last:
        transformer.ln_f = cast("Any", nn.Identity())
        if model.has_own_head:
            del model.lm_head


def _share_sequence(module: nn.Module, group: Any) -> None:
    """Let a block see whole sequences, sum what ranks computed of it, and return a part of them."""

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (gather_sequence(args[0], group), *args[1:])

    def scatter(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return scatter_sequence_sum(output, group)

    module.register_forward_pre_hook(gather)
    module.register_forward_hook(scatter)


def _cut_parameters(model: TeleChatModel, division: Division, groups: TrainGroups) -> None:
    """Replace every parameter by this rank's part; a bias that another rank adds goes away."""
    is_tied = model.config.tie_word_embeddings
    for name, parameter in list(model.named_parameters()):
        official = EMBEDDING if is_tied and name == HEAD else name
        cut = division.cut(official, groups.place)
        owner, _, leaf = name.rpartition(".")
        part = None
        if cut is not None:
            empty = torch.empty(cut.sizes, dtype=parameter.dtype, device=parameter.device)
            part = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        model.get_submodule(owner).register_parameter(leaf, part)
