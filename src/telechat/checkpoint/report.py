"""A look at a model folder without loading it: what is there, what is missing, what does not fit.

Unlike loading, which stops at the first error, the report lists every problem it finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from telechat.checkpoint.ascend import AscendFormat
from telechat.checkpoint.folder import CONFIG, find_weights, read_generation_config, read_json
from telechat.checkpoint.loader import config_from
from telechat.checkpoint.matching import match_tensors
from telechat.checkpoint.packing_choice import read_packing
from telechat.checkpoint.parts import is_split, weight_folders
from telechat.checkpoint.weights import StoredWeights, open_weights
from telechat.device import dtype_name
from telechat.errors import TelechatError
from telechat.models import TeleChatConfig, count_parameters
from telechat.tokenizer.load import TOKENIZER_FILES, VOCABULARY_FILES


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """What a model folder holds.

    Attributes:
        folder: the folder.
        config: its configuration, or None when config.json cannot be read.
        num_parameters: by the configuration; 0 without one.
        dtypes: dtype names on disk with the number of tensors in each.
        weight_files: names of the weight files.
        weight_bytes: their size together.
        tokenizer_files: those of TOKENIZER_FILES that are present.
        problems: one line each; empty when the folder is complete.
    """

    folder: Path
    config: TeleChatConfig | None
    num_parameters: int
    dtypes: dict[str, int]
    weight_files: tuple[str, ...]
    weight_bytes: int
    tokenizer_files: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing or wrong."""
        return not self.problems


def check_folder(folder: str | Path) -> FolderReport:
    """Check a model folder: configuration, tokenizer, every tensor's name, shape and dtype, file sizes."""
    folder = Path(folder)
    problems: list[str] = []
    weights = _weights(folder, problems)
    config = _config(folder, weights, problems)
    if config is not None:
        for piece in weights:
            try:
                _match(folder, config, piece)
            except TelechatError as error:
                problems.append(str(error))
    tokenizer_files = tuple(name for name in TOKENIZER_FILES if (folder / name).is_file())
    if not set(tokenizer_files) & set(VOCABULARY_FILES):
        problems.append(f"{folder} has no tokenizer: expected {' or '.join(VOCABULARY_FILES)}.")
    try:
        read_generation_config(folder)
    except TelechatError as error:
        problems.append(str(error))
    dtypes: dict[str, int] = {}
    for stored in (stored for piece in weights for stored in piece.tensors.values()):
        dtypes[dtype_name(stored.dtype)] = dtypes.get(dtype_name(stored.dtype), 0) + 1
    files = [file for piece in weights for file in piece.files.files] or _files(folder)
    return FolderReport(
        folder=folder,
        config=config,
        num_parameters=count_parameters(config) if config else 0,
        dtypes=dtypes,
        weight_files=tuple(_shown(path, folder) for path in files),
        weight_bytes=sum(path.stat().st_size for path in files),
        tokenizer_files=tokenizer_files,
        problems=tuple(problems),
    )


def _shown(path: Path, folder: Path) -> str:
    """A weight file's name, with its part's before it."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def _weights(folder: Path, problems: list[str]) -> list[StoredWeights]:
    """The folder's weights, or those of its parts by rank; none where they cannot be opened."""
    try:
        return [open_weights(place) for place in weight_folders(folder)]
    except TelechatError as error:
        problems.append(str(error))
        return []


def _match(folder: Path, config: TeleChatConfig, weights: StoredWeights) -> None:
    """Raise where weights are not the model's; of a rank's part only its own description is asked."""
    place = weights.files.files[0].parent if is_split(folder) else folder
    packing = read_packing(place, read_json(folder / CONFIG))
    if place == folder:
        match_tensors(config, weights, packing)
    elif isinstance(packing, AscendFormat):
        packing.check_names(weights.tensors)


def _config(folder: Path, weights: list[StoredWeights], problems: list[str]) -> TeleChatConfig | None:
    try:
        raw = read_json(folder / CONFIG)
        read_packing(folder, raw)
        shapes = {name: stored.shape for piece in weights for name, stored in piece.tensors.items()}
        return config_from(raw, shapes)
    except TelechatError as error:
        problems.append(str(error))
        return None


def _files(folder: Path) -> tuple[Path, ...]:
    try:
        return find_weights(folder).files
    except TelechatError:
        return ()
