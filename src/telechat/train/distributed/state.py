"""Parts of tensors as torch.distributed.checkpoint sees them, and whole tensors for saving.

A `Piece` is a rank's live tensor that knows which box of which whole it is. Checkpoints are made of such
boxes, so a run can be resumed on any other layout. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    create_default_local_load_plan,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from telechat.device import CPU
from telechat.train.distributed.division import Cut, Division


class Piece(Tensor):
    """A tensor that is a box of a larger one; shares its memory with what it was made of.

    Attributes:
        offsets, whole: where the box begins, and the shape of the whole.
    """

    offsets: tuple[int, ...]
    whole: tuple[int, ...]

    @staticmethod
    def of(tensor: Tensor, cut: Cut) -> Piece:
        """The live tensor of a cut."""
        assert tuple(tensor.shape) == cut.sizes, (cut, tuple(tensor.shape))
        piece = tensor.detach().as_subclass(Piece)
        piece.offsets, piece.whole = cut.offsets, cut.whole
        return piece

    # torch.distributed.checkpoint finds these three by their names.
    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        if not self.numel():
            return []
        data = TensorWriteData(
            chunk=self.__create_chunk_list__()[0],
            properties=TensorProperties.create_from_tensor(self.as_subclass(Tensor)),
            size=torch.Size(self.whole),
        )
        index = MetadataIndex(fqn, torch.Size(self.offsets))
        return [WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offsets=torch.Size(self.offsets), sizes=torch.Size(self.shape))]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self.as_subclass(Tensor)


class PieceLoadPlanner(DefaultLoadPlanner):
    """Reads pieces and plain tensors; torch's planner compares a piece's own size with that of the whole."""

    def create_local_plan(self) -> LoadPlan:
        """What this rank reads.

        Raises:
            ValueError: the checkpoint has no such tensor, or one of another shape.
        """
        assert self.metadata is not None
        known = self.metadata.state_dict_metadata
        requests = []
        for name, piece in self.state_dict.items():
            if not isinstance(piece, Piece):
                continue
            found = known.get(name)
            if not isinstance(found, TensorStorageMetadata) or tuple(found.size) != piece.whole:
                size = list(found.size) if isinstance(found, TensorStorageMetadata) else "none"
                raise ValueError(f"{name} has shape {size} in the checkpoint; expected {list(piece.whole)}")
            requests += create_read_items_for_chunk_list(name, found, piece.__create_chunk_list__())
        others = {name: value for name, value in self.state_dict.items() if not isinstance(value, Piece)}
        return LoadPlan(requests + create_default_local_load_plan(others, self.metadata).items)


def pieces_of_optimizer(
    state: Mapping[str, Mapping[str, Tensor]], cuts: Mapping[str, Cut]
) -> dict[str, dict[str, Tensor]]:
    """An optimiser's state tensors by parameter name, as pieces where they have the parameter's shape.

    What has another shape, such as moments in 8 bits, belongs to the box it was made for: its key names the
    box, so it can be read on the same layout only.
    """
    pieces: dict[str, dict[str, Tensor]] = {}
    for name, tensors in state.items():
        cut = cuts[name]
        pieces[name] = {}
        for key, tensor in tensors.items():
            if tuple(tensor.shape) == cut.sizes:
                pieces[name][key] = Piece.of(tensor, cut)
            elif tensor.dim() == 0 or cut.sizes == cut.whole:
                pieces[name][key] = tensor
            else:
                pieces[name][f"{key}@{','.join(map(str, cut.offsets))}"] = tensor
    return pieces


def whole_tensors(
    like: Mapping[str, Tensor], local: Mapping[str, Tensor], division: Division
) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors on rank 0, on the CPU, one at a time; the other ranks get tensors on `meta`.

    Args:
        like: shape and dtype of every whole by official name, in the same order on all ranks.
        local: this rank's live tensors.
    """
    rank = dist.get_rank()
    held = [division.held(other) for other in range(dist.get_world_size())]
    for name, empty in like.items():
        whole = torch.empty(empty.shape, dtype=empty.dtype, device=CPU if rank == 0 else "meta")
        seen = set()
        for owner, cuts in enumerate(held):
            cut = cuts.get(name)
            if cut is None or cut.is_empty or cut.offsets in seen:
                continue
            seen.add(cut.offsets)
            if owner == 0 == rank:
                whole[box(cut)] = local[name].detach().to(CPU)
            elif rank == 0:
                part = torch.empty(cut.sizes, dtype=empty.dtype)
                dist.recv(part, src=owner)
                whole[box(cut)] = part
            elif owner == rank:
                dist.send(local[name].detach().to(CPU).contiguous(), dst=0)
        yield name, whole


def box(cut: Cut) -> tuple[slice, ...]:
    """The index that takes a cut out of its whole."""
    return tuple(slice(start, start + size) for start, size in zip(cut.offsets, cut.sizes, strict=True))
