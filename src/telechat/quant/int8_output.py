"""The folder that W8A8 makes: the file names of the Ascend tool, and a type for every tensor.

Knows nothing of how integers were found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from telechat.checkpoint.ascend import STATIC, weights_file, write_description
from telechat.checkpoint.folder import CONFIG, write_json
from telechat.checkpoint.save import folder_config
from telechat.quant.int8 import Int8Plan, block_names, tensor_types
from telechat.quant.source import Source
from telechat.quant.unfinished import Unfinished

_GIGABYTE = 10**9


def write_int8_folder(out: Path, source: Source, plan: Int8Plan, unfinished: Unfinished) -> None:
    """Weights, config.json and description. Without `part_file_size` all weights are in memory once."""
    out.mkdir(parents=True, exist_ok=True)
    kind = STATIC if plan.config.is_dynamic else plan.kind
    writer = _Writer(out, weights_file(kind), plan.config.part_file_size)
    for name in block_names(source):
        writer.add({name: source.read(name).to(source.dtype, copy=True).contiguous()})
    for index in range(source.config.num_layers):
        writer.add(unfinished.load(index))
    placed = writer.finish()
    write_description(out, plan.kind, tensor_types(plan, placed))
    fields = {**folder_config(source.config, source.dtype, None), "quantize": plan.kind.lower()}
    write_json(out / CONFIG, fields)


class _Writer:
    """Collects tensors and writes a file whenever enough have come."""

    def __init__(self, folder: Path, name: str, part_gigabytes: float | None) -> None:
        self.folder, self.name = folder, name
        self.limit = None if part_gigabytes is None else part_gigabytes * _GIGABYTE
        self._waiting: dict[str, Tensor] = {}
        self._parts: list[list[str]] = []
        self._num_bytes = 0

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Take some tensors."""
        for name, tensor in tensors.items():
            size = sum(value.nbytes for value in self._waiting.values()) if self.limit else 0
            if self.limit and self._waiting and size + tensor.nbytes > self.limit:
                self._write()
            self._waiting[name] = tensor
            self._num_bytes += tensor.nbytes

    def finish(self) -> dict[str, str]:
        """Give the files their names, write the index where there are several; tensor -> file."""
        self._write()
        name, count = self.name, len(self._parts)
        stem = name.removesuffix(".safetensors")
        files = [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
        if count == 1:
            files = [name]
        for number, file in enumerate(files):
            (self.folder / f"part-{number}").rename(self.folder / file)
        placed = {tensor: files[n] for n, part in enumerate(self._parts) for tensor in part}
        if count > 1:
            index: dict[str, Any] = {"metadata": {"total_size": self._num_bytes}, "weight_map": placed}
            write_json(self.folder / f"{name}.index.json", index)
        return placed

    def _write(self) -> None:
        if self._waiting:
            save_file(self._waiting, self.folder / f"part-{len(self._parts)}", metadata={"format": "pt"})
            self._parts.append(list(self._waiting))
            self._waiting = {}
