"""`--mindie-config`: from what a MindIE configuration describes to the options of `telechat serve`.

An option typed beside the file wins over it. Knows both sides' names and nothing of what they do.
"""

from __future__ import annotations

import argparse
import logging
import os
from typing import TYPE_CHECKING, Any

from telechat.cli.model_options import MODEL_VARIABLE, chosen_model
from telechat.errors import ConfigError

if TYPE_CHECKING:
    from telechat.serve.mindie.config_file import MindieConfig

log = logging.getLogger(__name__)

# Options of `telechat serve`, which are None unless given, and where the file says the same.
_SAME = {
    "served_model_name": "served_model_name",
    "host": "host",
    "port": "port",
    "tp": "tp",
    "devices": "devices",
    "replicas": "replicas",
    "max_model_len": "max_model_len",
    "max_prompt_tokens": "max_prompt_tokens",
    "cache_memory": "cache_bytes",
    "block_size": "block_size",
    "max_batch_tokens": "max_batch_tokens",
    "max_batch_size": "max_batch_size",
    "max_pending_requests": "max_pending_requests",
    "request_timeout": "request_seconds",
    "tls_cert": "tls_cert",
    "tls_key": "tls_key",
}


def with_mindie_config(args: argparse.Namespace, config: MindieConfig) -> argparse.Namespace:
    """The options of `telechat serve` with the file's values where none was typed.

    Raises:
        ConfigError: no model is named anywhere.
    """
    from telechat.device import CPU, resolve_device

    values = dict(vars(args))
    values["model"] = _model(args.model, config)
    # These say how large the cache is too; one of them typed is enough.
    typed_cache = any(values[name] is not None for name in ("num_blocks", "memory_limit"))
    for option, name in _SAME.items():
        if values[option] is None and not (option == "cache_memory" and typed_cache):
            values[option] = getattr(config, name)
    if args.devices is None and config.devices is not None and resolve_device(args.device) == CPU:
        log.info("npuDeviceIds chooses accelerators; the model runs on the CPU, which has none")
        values["devices"] = None
    return argparse.Namespace(**values)


def _model(flag: str | None, config: MindieConfig) -> str:
    if flag is None and config.model is None and not os.environ.get(MODEL_VARIABLE):
        raise ConfigError("The configuration has no modelWeightPath.", hint="Name the model's folder there.")
    return chosen_model(flag, None if config.model is None else str(config.model))


def mindie_settings(config: MindieConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Fields of `ServeSettings` for which there are no options.

    Args:
        args: of `with_mindie_config`.
    """
    from telechat.serve.mindie.settings import MindieSettings

    ports = (config.management_port, config.metrics_port)
    return {
        "also_listen": tuple(
            dict.fromkeys((config.management_host, port) for port in ports if port is not None)
        ),
        "mindie": MindieSettings(
            max_iter_times=config.max_iter_times,
            max_prefill_tokens=args.max_batch_tokens,
            max_batch_size=args.max_batch_size,
            management_port=config.management_port or args.port,
            announces=True,
        ),
    }
