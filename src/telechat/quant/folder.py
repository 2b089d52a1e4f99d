"""A model folder made into a quantised one.

The source is never held whole, so models larger than memory pass. The result appears under its name when it
is complete. Knows no method of rounding.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from telechat.checkpoint import resolve_model, save_model
from telechat.checkpoint.formats.hf import companion_files
from telechat.checkpoint.formats.llama import check_fits
from telechat.checkpoint.names import EMBEDDING, HEAD
from telechat.checkpoint.quantized import stored_tensors
from telechat.checkpoint.save import folder_config, parameter_bytes, write_folder
from telechat.errors import CheckpointError, ConfigError
from telechat.models import TeleChatModel
from telechat.models.parameters import parameter_table
from telechat.models.quantized import check_scheme, is_quantisable, untied
from telechat.quant.blockwise import OnLayer, quantise_blocks
from telechat.quant.calibration import Calibration, from_examples, from_texts
from telechat.quant.config import QuantizeConfig
from telechat.quant.gptq_output import write_gptq_folder
from telechat.quant.int8 import quantise_int8
from telechat.quant.int8_config import Int8Config
from telechat.quant.int8_output import write_int8_folder
from telechat.quant.llama_output import write_llama_folder
from telechat.quant.rtn import quantize_model, round_nearest
from telechat.quant.source import Source
from telechat.quant.unfinished import Unfinished
from telechat.tokenizer import load_tokenizer

# Small, because a file's tensors are in memory together.
SHARD_BYTES = 1_000_000_000

OnProgress = Callable[[int, int], None]


def quantize(
    model: str | Path | TeleChatModel,
    out: str | Path,
    config: QuantizeConfig | Int8Config | None = None,
    *,
    examples: Sequence[Any] | None = None,
    texts: Sequence[Any] | None = None,
    calibration: Calibration | None = None,
    on_progress: OnProgress | None = None,
    on_layer: OnLayer | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a quantised model folder.

    Args:
        model: a folder, a hub id or `demo`, read piece by piece; its tokenizer and generation settings are
            copied. For rounding to nearest also a model in memory, which is left quantised; then only weights
            and config.json are written.
        out: made; must not exist, or be empty.
        config: by default round to nearest, 4 bits in groups of 32. `Int8Config` makes activations int8 too.
        examples: calibration as token ids, one list (or tokenizer's dictionary) per row. All methods but
            rounding to nearest need calibration; give one of the three.
        texts: calibration as texts or conversations.
        calibration: calibration that was read already.
        on_progress: called with (parameters done, of how many).
        on_layer: called after each layer, except where weights are rounded to nearest.

    Returns:
        The folder.

    Raises:
        ConfigError: a layer that does not divide into groups, numbers that are not finite, a model that is
            quantised already, calibration that is missing, malformed or not needed.
        CheckpointError: the source cannot be read, or `out` cannot be written. Nothing is left half-written;
            a run with calibration that is killed leaves `OUT.unfinished`; the same call goes on from there.
    """
    config, out = config or QuantizeConfig(), Path(out)
    is_nearest = isinstance(config, QuantizeConfig) and config.method == "rtn"
    _check(model, out, is_nearest, {"examples": examples, "texts": texts, "calibration": calibration})
    writing = out.with_name(f"{out.name}.writing-{os.getpid()}")
    blocks: Unfinished | None = None
    try:
        if isinstance(config, QuantizeConfig) and is_nearest:
            _round(model, writing, config, on_progress, max_shard_bytes)
        else:
            assert not isinstance(model, TeleChatModel)  # refused above
            folder = resolve_model(model)
            rows = calibration or _calibration(folder, examples, texts)
            blocks = _calibrate(Source(folder), out, writing, config, rows, on_layer, max_shard_bytes)
        if out.exists():
            out.rmdir()
        writing.rename(out)
    except OSError as error:
        raise CheckpointError(f"Cannot write {out}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    if blocks is not None:
        blocks.remove()
    return out


def _calibrate(
    source: Source,
    out: Path,
    writing: Path,
    config: QuantizeConfig | Int8Config,
    rows: Calibration,
    on_layer: OnLayer | None,
    max_shard_bytes: int,
) -> Unfinished:
    """Quantise block by block, and make the folder `writing` of the blocks, which are returned."""
    if isinstance(config, Int8Config):
        blocks, plan = quantise_int8(source, out, config, rows, on_layer)
        _copy_rest(source.folder, writing)
        write_int8_folder(writing, source, plan, blocks)
        return blocks
    is_llama = config.layout == "llama"
    if is_llama:
        check_fits(source.config, "the layout llama")
    blocks, layers = quantise_blocks(source, out, config, rows, on_layer)
    _copy_rest(source.folder, writing)
    write = write_llama_folder if is_llama else write_gptq_folder
    write(writing, source, config, layers, blocks, max_shard_bytes=max_shard_bytes)
    return blocks


def _check(
    model: str | Path | TeleChatModel, out: Path, is_nearest: bool, rows: Mapping[str, object]
) -> None:
    """Refuse what cannot be done, before anything is read.

    Raises:
        ConfigError, CheckpointError: as `quantize`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists already.", hint="Name a folder that does not.")
    given = [name for name, value in rows.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} both say what to calibrate with.", hint="Give one of them.")
    if is_nearest and given:
        raise ConfigError("Rounding to nearest looks at no calibration rows.", hint="Choose the method gptq.")
    if not is_nearest and isinstance(model, TeleChatModel):
        raise ConfigError(
            "Calibration reads a folder block by block.", hint="Save the model, and name its folder."
        )


def _calibration(folder: Path, examples: Sequence[Any] | None, texts: Sequence[Any] | None) -> Calibration:
    if examples is not None:
        return from_examples(examples)
    if texts is not None:
        return from_texts(texts, load_tokenizer(folder))
    return Calibration(())  # which says what to do


def _round(
    model: str | Path | TeleChatModel,
    folder: Path,
    config: QuantizeConfig,
    on_progress: OnProgress | None,
    max_shard_bytes: int,
) -> None:
    """Round to nearest into `folder`."""
    if isinstance(model, TeleChatModel):
        quantize_model(model, config.bits, config.groups)
        save_model(model, folder, max_shard_bytes=max_shard_bytes)
        return
    source, scheme = Source(resolve_model(model)), config.scheme
    check_scheme(source.config, scheme)
    round_weight = round_nearest(scheme)
    written = untied(source.config)
    sizes = parameter_bytes(written, source.dtype, scheme)
    quantisable = {p.name for p in parameter_table(written) if is_quantisable(p)}
    num_done = 0

    def content(names: list[str]) -> dict[str, Tensor]:
        nonlocal num_done
        tensors: dict[str, Tensor] = {}
        for name in names:
            is_tied_head = name == HEAD and source.config.tie_word_embeddings
            tensor = source.read(EMBEDDING if is_tied_head else name)
            if name in quantisable:
                tensors.update(stored_tensors(name, round_weight(name, tensor)))
            else:
                tensors[name] = tensor.to(source.dtype).contiguous()
            num_done += 1
            if on_progress is not None:
                on_progress(num_done, len(sizes))
        return tensors

    fields = folder_config(written, source.dtype, scheme)
    write_folder(folder, fields, sizes, content, max_shard_bytes=max_shard_bytes)
    _copy_rest(source.folder, folder)


def _copy_rest(source: Path, out: Path) -> None:
    """Tokenizer and generation settings."""
    out.mkdir(parents=True, exist_ok=True)
    for name, content in companion_files(source).items():
        (out / name).write_bytes(content)
