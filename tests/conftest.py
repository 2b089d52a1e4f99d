"""What every test gets: an environment that does not read the developer's settings."""

from __future__ import annotations

import pytest

# Set by users to choose a model, a device or a key; a test that wants one sets it itself.
USER_SETTINGS = ("MODEL_PATH", "CUDA_VISIBLE_DEVICES", "TELECHAT_API_KEY", "HF_TOKEN", "HF_ENDPOINT")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on the variables of whoever runs them, and no telemetry is sent."""
    for name in USER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
