"""Checkpoints in and out: official folders, model hubs, and the check that `telechat doctor` makes."""

from telechat.checkpoint.adapter import Adapter, LowRank, merge_adapter
from telechat.checkpoint.adapter_config import AdapterConfig
from telechat.checkpoint.adapter_folder import read_adapter, write_adapter
from telechat.checkpoint.folder import read_generation_config
from telechat.checkpoint.hub import resolve_model
from telechat.checkpoint.loader import load_model, read_config
from telechat.checkpoint.report import FolderReport, check_folder
from telechat.checkpoint.save import save_model

__all__ = [
    "Adapter",
    "AdapterConfig",
    "FolderReport",
    "LowRank",
    "check_folder",
    "load_model",
    "merge_adapter",
    "read_adapter",
    "read_config",
    "read_generation_config",
    "resolve_model",
    "save_model",
    "write_adapter",
]
