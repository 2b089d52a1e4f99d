"""A model folder made into a quantised one, one file at a time.

The source is never held whole, so models larger than memory pass. The result appears under its name when it
is complete. Knows no method of rounding; these come from `config.METHODS`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from telechat.checkpoint import read_config, resolve_model, save_model
from telechat.checkpoint.folder import CONFIG, LAYOUTS, read_json
from telechat.checkpoint.matching import match_tensors
from telechat.checkpoint.names import EMBEDDING, HEAD
from telechat.checkpoint.packing_choice import read_packing
from telechat.checkpoint.quantized import stored_tensors
from telechat.checkpoint.save import folder_config, parameter_bytes, write_folder
from telechat.checkpoint.weights import StoredWeights, open_weights
from telechat.errors import CheckpointError, ConfigError
from telechat.models import TeleChatConfig, TeleChatModel
from telechat.models.parameters import parameter_table
from telechat.models.quantized import check_scheme, is_quantisable, untied
from telechat.quant.config import METHODS, QuantizeConfig
from telechat.quant.rtn import RoundParameter, quantize_model

# Small, because a file's tensors are in memory together.
SHARD_BYTES = 1_000_000_000
# What belongs to a model besides weights and config.json.
_COPIED = ("*.json", "*.model", "*.txt", "*.jinja")

OnProgress = Callable[[int, int], None]


def quantize(
    model: str | Path | TeleChatModel,
    out: str | Path,
    config: QuantizeConfig | None = None,
    *,
    on_progress: OnProgress | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a quantised model folder.

    Args:
        model: a folder, a hub id or `demo`, read a file at a time; its tokenizer and generation settings are
            copied. Or a model in memory, which is left quantised; then only weights and config.json are
            written.
        out: made; must not exist, or be empty.
        config: by default round to nearest, 4 bits in groups of 32.
        on_progress: called with (parameters done, of how many).

    Returns:
        The folder.

    Raises:
        ConfigError: a layer that does not divide into groups, numbers that are not finite, a model that is
            quantised already.
        CheckpointError: the source cannot be read, or `out` cannot be written. Nothing is left half-written.
    """
    config = config or QuantizeConfig()
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists already.", hint="Name a folder that does not.")
    unfinished = out.with_name(f"{out.name}.writing-{os.getpid()}")
    try:
        if isinstance(model, TeleChatModel):
            quantize_model(model, config.bits, config.group_size)
            save_model(model, unfinished, max_shard_bytes=max_shard_bytes)
        else:
            source = _Source(resolve_model(model), config)
            source.write(unfinished, max_shard_bytes, on_progress)
            _copy_rest(source.folder, unfinished)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    except OSError as error:
        raise CheckpointError(f"Cannot write {out}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


class _Source:
    """The folder to quantise, checked before anything is written."""

    def __init__(self, folder: Path, config: QuantizeConfig) -> None:
        self.folder = folder
        self.scheme = config.scheme
        self.round_weight: RoundParameter = METHODS.resolve(config.method)(self.scheme)
        raw = read_json(folder / CONFIG)
        stored = read_packing(folder, raw)
        if stored is not None:
            raise ConfigError(
                f"{folder.name} is quantised already, to {stored.summary}.",
                hint="Start from the unquantised model.",
            )
        self.weights: StoredWeights = open_weights(folder)
        self.stored_config: TeleChatConfig = read_config(folder)
        check_scheme(self.stored_config, self.scheme)
        self.names = match_tensors(self.stored_config, self.weights)
        # What stays as it is keeps its dtype; where there are several, the commonest.
        dtypes = [stored.dtype for stored in self.weights.tensors.values() if stored.dtype.is_floating_point]
        self.dtype = max(set(dtypes), key=dtypes.count)

    def write(self, out: Path, max_shard_bytes: int, on_progress: OnProgress | None) -> None:
        config = untied(self.stored_config)
        sizes = parameter_bytes(config, self.dtype, self.scheme)
        quantisable = {p.name for p in parameter_table(config) if is_quantisable(p)}
        num_done = 0

        def content(names: list[str]) -> dict[str, Tensor]:
            nonlocal num_done
            tensors: dict[str, Tensor] = {}
            for name in names:
                source = EMBEDDING if name == HEAD and self.stored_config.tie_word_embeddings else name
                [(_, tensor)] = self.weights.stream({self.names[source]})
                if name in quantisable:
                    tensors.update(stored_tensors(name, self.round_weight(name, tensor)))
                else:
                    tensors[name] = tensor.to(self.dtype).contiguous()
                num_done += 1
                if on_progress is not None:
                    on_progress(num_done, len(sizes))
            return tensors

        write_folder(
            out,
            folder_config(config, self.dtype, self.scheme),
            sizes,
            content,
            max_shard_bytes=max_shard_bytes,
        )


def _copy_rest(source: Path, out: Path) -> None:
    """Tokenizer and generation settings."""
    for pattern in _COPIED:
        for path in sorted(source.glob(pattern)):
            if path.name not in (CONFIG, *LAYOUTS) and path.is_file():
                shutil.copy(path, out / path.name)
