"""Small models for several ranks, and the function by which every rank builds its part of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tests.tiny import TEXTS
from torch import nn

from telechat.checkpoint import save_model
from telechat.errors import CheckpointError
from telechat.layers.moe import MoeConfig
from telechat.layers.quantized import QuantizedLinear, set_module
from telechat.layers.rotary import RopeSettings
from telechat.models import TeleChatConfig, TeleChatModel, build_model, initialise
from telechat.models.native import NativeExecutor
from telechat.models.paged import PagedBatch, TorchExecutor
from telechat.ops.cpu.context import Context
from telechat.ops.paged import Sequences
from telechat.ops.quantized import WeightScheme
from telechat.parallel.groups import Groups
from telechat.parallel.tensor import RankPart
from telechat.tokenizer.train import train_tokenizer

BUILD = "tests.distributed.models:build_rank"
BLOCK_SIZE = 16
NUM_BLOCKS = 24


def make_config(
    *, heads: int = 8, kv_heads: int = 8, experts: int = 0, tied: bool = False, vocab: int = 101
) -> TeleChatConfig:
    """Two layers of head dimension 16, inner width 64; a vocabulary that no number of ranks divides."""
    return TeleChatConfig(
        vocab_size=vocab,
        hidden_size=16 * heads,
        num_layers=2,
        num_heads=heads,
        num_kv_heads=kv_heads,
        ffn_hidden_size=64,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        rope=RopeSettings(base_length=256, training_length=256),
        moe=MoeConfig(num_experts=experts, num_experts_per_token=2) if experts else None,
    )


def whole_model(shape: Mapping[str, Any]) -> TeleChatModel:
    """The same random model in every process, biases included."""
    shape = {name: value for name, value in shape.items() if name not in ("native", "bits")}
    model = build_model(make_config(**shape))
    initialise(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.data.normal_(0.0, 0.5, generator=generator)
    return model.eval()


def executor_of(model: TeleChatModel, shape: Mapping[str, Any]) -> TorchExecutor | NativeExecutor:
    """The CPU kernels where `shape` says "native", else torch; quantised where it gives "bits"."""
    if shape.get("bits"):
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name != "lm_head":
                layer = QuantizedLinear.from_linear(module, WeightScheme(shape["bits"], 32))
                set_module(model, name, layer)
    return NativeExecutor(model, context=Context(1)) if shape.get("native") else TorchExecutor(model)


def build_rank(settings: Mapping[str, Any], groups: Groups) -> TorchExecutor | NativeExecutor:
    """One rank's part of `whole_model(settings)`."""
    model = whole_model(settings)
    whole = {name: parameter.data for name, parameter in model.named_parameters()}
    part = RankPart(groups)
    part.prepare(model)
    for name, tensor in whole.items():
        kept = part.cut(name, tensor)
        if kept is not None:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(kept.clone(), requires_grad=False))
    return executor_of(model, settings)


def prompt_batch(token_ids: list[int], blocks: list[int], *, cached: int = 0) -> PagedBatch:
    """The tokens after the first `cached` of one sequence that owns these blocks; results of every row."""
    positions = torch.arange(cached, len(token_ids))
    slots = torch.tensor(blocks)[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    count = len(positions)
    return PagedBatch(
        torch.tensor(token_ids[cached:]),
        positions,
        [(count, len(token_ids))],
        slots,
        Sequences.of([count], [len(token_ids)], [blocks]),
        torch.arange(count),
    )


def decode_batch(sequences: list[list[int]], blocks: list[list[int]]) -> PagedBatch:
    """The last token of each sequence, all earlier ones cached."""
    lengths = [len(sequence) for sequence in sequences]
    slots = [
        table[(length - 1) // BLOCK_SIZE] * BLOCK_SIZE + (length - 1) % BLOCK_SIZE
        for table, length in zip(blocks, lengths, strict=True)
    ]
    return PagedBatch(
        torch.tensor([sequence[-1] for sequence in sequences]),
        torch.tensor(lengths) - 1,
        [(len(sequences), max(lengths))],
        torch.tensor(slots),
        Sequences.of([1] * len(sequences), lengths, blocks),
        torch.arange(len(sequences)),
    )


def build_only_rank_0(settings: Mapping[str, Any], groups: Groups) -> TorchExecutor | NativeExecutor:
    """As `build_rank`, but fails in other processes."""
    if groups.rank:
        raise CheckpointError(f"the disk of rank {groups.rank} is gone")
    return build_rank(settings, groups)


def run_case(executor: Any) -> list[torch.Tensor]:
    """Logits of a prompt, of another that shares its first block, of steps of both, then hidden states."""
    generator = torch.Generator().manual_seed(3)
    vocab = executor.config.vocab_size
    first = torch.randint(vocab, (37,), generator=generator).tolist()
    second = first[:BLOCK_SIZE] + torch.randint(vocab, (9,), generator=generator).tolist()
    blocks = [[5, 2, 9], [5, 7]]
    executor.allocate(NUM_BLOCKS, BLOCK_SIZE)
    found = [executor.forward(prompt_batch(first, blocks[0]))]
    found.append(executor.forward(prompt_batch(second, blocks[1], cached=BLOCK_SIZE)))
    for step in range(3):
        first.append(step)
        second.append(vocab - 1 - step)
        found.append(executor.forward(decode_batch([first, second], blocks)))
    found.append(executor.hidden_states(decode_batch([first, second], blocks)))
    return found


def save_folder(folder: Path, shape: Mapping[str, Any]) -> Path:
    """`whole_model(shape)` with a tokenizer, as a model folder."""
    train_tokenizer(TEXTS * 3, vocab_size=shape["vocab"], out_folder=folder)
    save_model(whole_model(shape), folder)
    return folder
