"""What a run would be, checked as its start would check it: without weights or other processes.

Files of rows must be there; what is in them is not looked at.
"""

from __future__ import annotations

import logging
import math

from telechat.data.sources import read_sources
from telechat.errors import ConfigError
from telechat.models import TeleChatConfig, count_parameters, parameter_table
from telechat.train.config import TrainConfig
from telechat.train.distributed.division import Division
from telechat.train.distributed.groups import world_size
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.distributed.stages import layer_counts
from telechat.train.distributed.start import check_recipe
from telechat.train.feed import check_grouping
from telechat.train.run import check_length
from telechat.train.setup import known_config

log = logging.getLogger(__name__)


def check_run(config: TrainConfig) -> None:
    """Check a recipe against its model and layout, and log what each process would hold.

    A recipe that names `parallel.dp` is checked for its own number of processes, another for those there are.

    Raises:
        ConfigError: what the start would refuse; names the numbers, or the file that is not there.
    """
    layout = config.parallel.for_world(recipe_world(config.parallel) or world_size())
    log.info("layout: %s = %d", _shown(layout), layout.world_size)
    assert layout.dp is not None
    row_length = config.data.max_length if config.batch.packing else None
    check_grouping(config.batch, row_length=row_length, num_ranks=layout.dp * layout.ep)
    check_recipe(config, layout)
    model = known_config(config.model)
    if model is None:
        log.warning("%s is not on this machine: nothing is checked against it", config.model.start_from)
    else:
        check_length(config, model)
        for line in describe(model, layout):
            log.info("%s", line)
    check_files(config)


def check_files(config: TrainConfig) -> None:
    """Make sure that there are all files of rows that a recipe names.

    Raises:
        ConfigError: names the field and the file.
    """
    files = {"data.train_file": config.data.train_file}
    if config.evaluation.file:
        files["evaluation.file"] = config.evaluation.file
    for field, file in files.items():
        try:
            read_sources(file)
        except ConfigError as error:
            flag = field.replace("_", "-")
            hint = error.hint or f"Correct it in the recipe, or name another with --{flag}."
            raise ConfigError(f"{field}: {error.message}", hint=hint) from error


def recipe_world(layout: ParallelLayout) -> int | None:
    """Number of processes that a layout names; None where `dp` takes what there is."""
    return None if layout.dp is None else layout.dp * layout.ep * layout.num_model_ranks


def describe(model: TeleChatConfig, layout: ParallelLayout) -> list[str]:
    """A model on a layout, in words.

    Raises:
        ConfigError: the layout does not fit the model.
    """
    division = Division(model, layout, {entry.name: entry.shape for entry in parameter_table(model)})
    places = [layout.place(rank) for rank in range(layout.world_size)]
    # Ranks that differ in data alone hold alike.
    ranks = [rank for rank, place in enumerate(places) if place.dp == place.cp == 0]
    held = [sum(math.prod(cut.sizes) for cut in division.held(rank).values()) for rank in ranks]
    lines = [
        f"model: {count_parameters(model):,} parameters, {model.num_layers} layers, {model.num_heads} heads, "
        f"{model.num_kv_heads} key/value heads",
        f"parameters that a process keeps between steps: {min(held):,} to {max(held):,}",
    ]
    if layout.pp > 1:
        lines.insert(
            1, f"layers of each stage: {' / '.join(map(str, layer_counts(model.num_layers, layout)))}"
        )
    if model.moe is not None:
        lines.append(
            f"experts of each process: {len(division.held_experts(places[0]))} of a layer's "
            f"{model.moe.num_experts}"
        )
    return lines


def _shown(layout: ParallelLayout) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in reversed(layout.sizes.items()))
