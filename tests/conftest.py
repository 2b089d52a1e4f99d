"""What every test gets: an environment that does not read the developer's settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Triton decides when it is first imported whether kernels run in its interpreter, on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine is no reason to fail: how long an example takes is not what these tests are about.
settings.register_profile("telechat", deadline=None)
settings.load_profile("telechat")

# Set by users to choose a model, a device or a key; a test that wants one sets it itself.
USER_SETTINGS = (
    *("MODEL_PATH", "TELECHAT_API_KEY", "HF_TOKEN", "HF_ENDPOINT"),
    *("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "TP_WORLD_SIZE", "MASTER_PORT", "BIND_CPU"),
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on the variables of whoever runs them, and no telemetry is sent."""
    for name in USER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture(autouse=True)
def same_log_level() -> Iterator[None]:
    """What a command set with --log-level does not hide the messages that a later test waits for."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model with a 300-entry vocabulary and 1024 tokens of context; read only."""
    from tests.tiny import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))
