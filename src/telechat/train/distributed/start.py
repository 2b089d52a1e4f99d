"""From a recipe to the engine of this process: alone, or as one of those that a launcher started."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from telechat.checkpoint import resolve_model
from telechat.checkpoint.folder import CONFIG, read_json
from telechat.checkpoint.packing_choice import read_packing
from telechat.device import CPU, resolve_device
from telechat.errors import ConfigError
from telechat.models import TeleChatModel, build_model
from telechat.train.config import TrainConfig
from telechat.train.distributed.engine import DistributedEngine
from telechat.train.distributed.groups import join, world_size
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.distributed.sources import WeightSource, folder_source, fresh_source, model_source
from telechat.train.engine import LocalEngine, TrainEngine
from telechat.train.noise import add_noise
from telechat.train.objective import Objective
from telechat.train.precision import PRECISIONS
from telechat.train.setup import choose_training_attention, model_config, prepare_blocks, prepare_model


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
        engine: this process's.
        model: the whole model with its settings; its parameters may be on `meta`.
        num_devices: processes of the run.
    """

    engine: TrainEngine
    model: TeleChatModel
    num_devices: int


def open_engine(config: TrainConfig, objective: Objective) -> Start:
    """The engine that a recipe asks for, on the processes there are.

    Raises:
        ConfigError: the layout does not multiply to the number of processes, or does not fit the model.
        MissingExtraError: DeepSpeed is asked for and not installed.
    """
    num_processes = world_size()
    layout = config.parallel.for_world(num_processes)
    device = rank_device(config.device)
    if layout.engine == "deepspeed":
        return _deepspeed(config, objective, layout, device)
    if num_processes == 1 and not layout.offload:
        model = prepare_model(config, device)
        prepare_blocks(model.transformer.blocks, config)
        engine: TrainEngine = LocalEngine(model, objective, config.optimizer, config.precision)
        return Start(engine, model, 1)
    check_recipe(config, layout)
    join(device)
    model, source = _whole(config, device)
    engine = DistributedEngine(
        model,
        objective,
        config.optimizer,
        config.precision,
        layout=layout,
        device=device,
        source=source,
        prepare=lambda blocks: prepare_blocks(blocks, config),
    )
    return Start(engine, model, num_processes)


def check_recipe(config: TrainConfig, layout: ParallelLayout) -> None:
    """Refuse settings that do not go with axes that divide a block or a sequence.

    Raises:
        ConfigError: names both.
    """
    if config.compile and layout.tp * layout.cp * layout.ep > 1:
        raise ConfigError(
            f"compile does not go with parallel.tp {layout.tp}, cp {layout.cp}, ep {layout.ep}: blocks wait "
            "for other processes in their middle.",
            hint="Leave compile out, or use parallel.dp and pp.",
        )


def rank_device(name: str) -> torch.device:
    """Where this process computes: of several accelerators, each process of a machine has its own."""
    device = resolve_device(name)
    local_rank = os.environ.get("LOCAL_RANK")
    if device.type == CPU.type or local_rank is None:
        return device
    return resolve_device(f"{device.type}:{local_rank}")


def _whole(config: TrainConfig, device: torch.device) -> tuple[TeleChatModel, WeightSource]:
    """The whole model without memory, and where its weights are read from.

    An adapter's start values, and weights that are quantised, need the model in the host's memory.
    """
    precision = PRECISIONS[config.precision]
    section = config.model
    if config.lora or (section.start_from and _is_quantised(section.start_from)):
        model = prepare_model(config, CPU)
        source = model_source(model)
    else:
        model = build_model(model_config(section), device="meta", target=device, dtype=precision.weights)
        if section.start_from:
            source = folder_source(section.start_from)
        else:
            source = fresh_source(model.config, seed=config.seed)
        add_noise(model, config.neftune_alpha)
    choose_training_attention(model, config.attention, precision.compute, device.type)
    return model, source


def _is_quantised(path_or_name: str) -> bool:
    folder = resolve_model(path_or_name)
    return read_packing(folder, read_json(folder / CONFIG)) is not None


def _deepspeed(
    config: TrainConfig, objective: Objective, layout: ParallelLayout, device: torch.device
) -> Start:
    from telechat.train.distributed.deepspeed import DeepSpeedEngine

    model = prepare_model(config, device)
    prepare_blocks(model.transformer.blocks, config)
    engine = DeepSpeedEngine(
        model, objective, config.optimizer, config.precision, layout=layout, device=device
    )
    return Start(engine, model, layout.world_size)
