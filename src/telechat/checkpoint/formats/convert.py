"""From an opened checkpoint to files of another format.

Knows every format by name and which options each takes; how tensors are mapped is theirs.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from telechat.checkpoint.formats.gguf import SUFFIX as GGUF_SUFFIX
from telechat.checkpoint.formats.gguf import plan_gguf_file
from telechat.checkpoint.formats.gguf_kquants import FILE_TYPES as K_QUANTS
from telechat.checkpoint.formats.gguf_kquants import SOURCE_TYPE, quantise, require_quantiser
from telechat.checkpoint.formats.hf import plan_hf
from telechat.checkpoint.formats.llama import plan_llama
from telechat.checkpoint.formats.mindspore import DEFAULT_PREFIX, plan_mindspore
from telechat.checkpoint.formats.table import Checkpoint
from telechat.checkpoint.formats.writing import (
    OnProgress,
    TargetPlan,
    check_target,
    fingerprint,
    write_target,
    writing,
)
from telechat.checkpoint.mindspore.layouts import ParallelLayout
from telechat.checkpoint.mindspore.naming import Layout
from telechat.checkpoint.mindspore.telechat1_52b import RowOrder
from telechat.checkpoint.save import DEFAULT_SHARD_BYTES
from telechat.errors import CheckpointError, UsageError

FORMATS = ("hf", "llama", "gguf", "mindspore", "dcp")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What a conversion may be told; None, or False, stands for the format's own choice.

    Attributes:
        dtype: of the tensors (all but gguf).
        max_shard_bytes: of a weight file (hf, llama).
        length: context that the rotary base is fixed for, in tokens (llama, gguf).
        gguf_type: encoding of the weights (gguf).
        qkv_concat, gmm: MindFormers' layouts (mindspore).
        layout: slices for this many ranks (mindspore).
        prefix: of file names (mindspore).
        crc: end files with a CRC (mindspore).
        row_order: of a TeleChat1-52B (mindspore).
    """

    dtype: torch.dtype | None = None
    max_shard_bytes: int | None = None
    length: int | None = None
    gguf_type: str | None = None
    qkv_concat: bool = False
    gmm: bool = False
    layout: ParallelLayout | None = None
    prefix: str | None = None
    crc: bool = False
    row_order: RowOrder | None = None


_TAKEN = {
    "hf": {"dtype", "max_shard_bytes"},
    "llama": {"dtype", "max_shard_bytes", "length"},
    "gguf": {"gguf_type", "length"},
    "mindspore": {"dtype", "qkv_concat", "gmm", "layout", "prefix", "crc", "row_order"},
    "dcp": {"dtype"},
}


def check_options(to: str, options: ConvertOptions) -> None:
    """Refuse an option that the format has no use for.

    Raises:
        UsageError: names it.
    """
    for field in fields(options):
        if getattr(options, field.name) not in (None, False) and field.name not in _TAKEN[to]:
            takers = [name for name, taken in _TAKEN.items() if field.name in taken]
            raise UsageError(
                f"--{field.name.replace('_', '-')} has no meaning for {to}.",
                hint=f"It belongs to {' and '.join(takers)}.",
            )


# Endings of files, with the formats that write one.
_ENDINGS = {
    GGUF_SUFFIX: ("gguf",),
    ".ckpt": ("mindspore",),
    ".safetensors": ("mindspore",),
    **dict.fromkeys((".bin", ".pt", ".pth", ".zip", ".tar"), ()),
}


def check_name(target: Path, to: str) -> None:
    """Refuse the name of a file for what would become a folder.

    Raises:
        UsageError: the name ends like a file that the format does not write.
    """
    formats = _ENDINGS.get(target.suffix, (to,))
    if to not in formats:
        more = f" {target.suffix} is written by --to {formats[0]}." if formats else ""
        raise UsageError(
            f"{target.name} is the name of a file, and {to} is written as a folder.",
            hint=f"Leave {target.suffix} out.{more}",
        )


def convert(
    source: Checkpoint,
    target: Path,
    to: str,
    options: ConvertOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> None:
    """Write a checkpoint in another format. The target gets its name when it is complete.

    Args:
        target: a file or a folder, as the format has it; must not exist, or be an empty folder.
        on_progress: called with (bytes written, of how many).

    Raises:
        CheckpointError: it cannot be written so, or not there.
        UsageError: an option that the format does not take, or a target whose name is another format's.
    """
    options = options or ConvertOptions()
    check_options(to, options)
    check_name(target, to)
    check_target(target)
    if options.gguf_type in K_QUANTS:
        _write_k_quants(source, target, options, on_progress)
        return
    if to == "dcp":
        _write_dcp(source, target, options, on_progress)
    else:
        write_target(target, plan(source, target, to, options), on_progress)


def plan(source: Checkpoint, target: Path, to: str, options: ConvertOptions) -> TargetPlan:
    """What `convert` writes, for every format of plain files."""
    shard_bytes = options.max_shard_bytes or DEFAULT_SHARD_BYTES
    planners: dict[str, Callable[[], Any]] = {
        "hf": lambda: plan_hf(source, dtype=options.dtype, max_shard_bytes=shard_bytes),
        "llama": lambda: plan_llama(
            source, dtype=options.dtype, length=options.length, max_shard_bytes=shard_bytes
        ),
        "gguf": lambda: plan_gguf_file(source, target, kind=options.gguf_type, length=options.length),
        "mindspore": lambda: plan_mindspore(
            source,
            target,
            form=Layout(qkv_concat=options.qkv_concat, gmm=options.gmm),
            layout=options.layout,
            prefix=options.prefix or DEFAULT_PREFIX,
            dtype=options.dtype,
            with_crc=options.crc,
            row_order=options.row_order,
        ),
    }
    planned: TargetPlan = planners[to]()
    return planned


def _write_k_quants(
    source: Checkpoint, target: Path, options: ConvertOptions, on_progress: OnProgress | None
) -> None:
    """By way of a file in fp16, which llama.cpp's quantiser reads.

    That file is written as any other, so a run that was interrupted continues it; quantising begins anew.
    """
    require_quantiser()
    assert options.gguf_type is not None
    work = target.with_name(target.name + ".quantising")
    planned = plan(source, target, "gguf", replace(options, gguf_type=SOURCE_TYPE))
    [file] = planned.files
    with writing(target, work, hint="Run the command again: it continues."):
        whole = TargetPlan(files=(file,), is_file=True)
        wide = work / f"{fingerprint(whole)[:16]}{GGUF_SUFFIX}"
        _leave_only(work, wide.name)
        if not wide.is_file():
            write_target(wide, whole, on_progress)
        made = work / "made"
        made.mkdir()
        narrow = made / file.name.replace(f"-{SOURCE_TYPE}.", f"-{options.gguf_type}.")
        quantise(wide, narrow, options.gguf_type)
        if planned.is_file:
            narrow.replace(target)
        else:
            for name, content in planned.small.items():
                text = content.decode("utf-8").replace(file.name, narrow.name)
                (made / name).write_text(text, encoding="utf-8")
            _give_name(made, target)
        shutil.rmtree(work)


def _leave_only(folder: Path, start: str) -> None:
    """Remove what an earlier run with other files or options left, which can be large."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if not path.name.startswith(start):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _give_name(folder: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        target.rmdir()
    folder.rename(target)


def _write_dcp(
    source: Checkpoint, target: Path, options: ConvertOptions, on_progress: OnProgress | None
) -> None:
    """torch writes this format itself, from the beginning; the folder is renamed when it is complete."""
    from telechat.checkpoint.formats.dcp_writing import write_dcp  # imports torch.distributed

    partial = target.with_name(target.name + ".partial")
    needed = sum(tensor.num_bytes for tensor in source.cast(options.dtype).values())
    with writing(target, partial, hint="Run the command again: it begins anew."):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            free = shutil.disk_usage(partial).free
            if needed > free:
                raise CheckpointError(f"{needed / 1e9:.2f} GB are needed; {free / 1e9:.2f} GB are free.")
            write_dcp(source, partial, options.dtype, on_progress)
            _give_name(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
