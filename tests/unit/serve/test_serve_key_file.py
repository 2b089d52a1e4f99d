"""The key file: what is read, and what is refused with a line that names the place."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest
from tests.unit.serve.conftest import MakeClient

from telechat.errors import ConfigError
from telechat.serve.key_file import read_key_file
from telechat.serve.key_ring import resolve_ring
from telechat.serve.limits import Limits
from telechat.serve.settings import ServeSettings

HASH = hashlib.sha256(b"sk-bob").hexdigest()
GOOD = f"""
keys:
  alice:
    key: sk-alice
    requests_per_minute: 60
    tokens_per_minute: 20000
    concurrency: 4
  bob@example.org:
    key_sha256: {HASH}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "keys.yaml"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def test_names_keys_and_limits(tmp_path: Path) -> None:
    alice, bob = read_key_file(written(tmp_path, GOOD))
    assert (alice.name, alice.digest) == ("alice", hashlib.sha256(b"sk-alice").digest())
    assert alice.limits == Limits(requests_per_minute=60, tokens_per_minute=20000, concurrency=4)
    assert (bob.name, bob.digest.hex(), bob.limits) == ("bob@example.org", HASH, Limits())


def test_keys_of_the_file_open_the_service(make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client(key_file=written(tmp_path, GOOD), api_keys=("sk-extra",))
    for key, status in (("sk-alice", 200), ("sk-bob", 200), ("sk-extra", 200), (HASH, 401), ("x", 401)):
        answer = client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status
    assert client.get("/v1/models").status_code == 401


def test_a_public_host_with_a_key_file_needs_no_generated_key(tmp_path: Path) -> None:
    kept = tmp_path / "generated"
    settings = ServeSettings(host="0.0.0.0", key_file=written(tmp_path, GOOD), api_key_file=kept)
    assert resolve_ring(settings).find(b"sk-alice") is not None
    assert not kept.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no keys"),
        ("keys: {}", "holds no keys"),
        ("key: {}", "Did you mean keys"),
        ("keys: {a: {kye: sk-a}}", "Did you mean keys.a.key"),
        ("keys: {a: {key: sk-a, request_per_minute: 3}}", "Did you mean keys.a.requests_per_minute"),
        ("keys: {a: {key: sk-a, concurrency: 0}}", "keys.a: concurrency is 0"),
        ("keys: {a: {key: sk-a, concurrency: many}}", "keys.a.concurrency"),
        ("keys: {a: {}}", "keys.a must have either"),
        ("keys: {a: sk-a}", "keys.a is not a mapping"),
        ("keys: {a: {key: sk-a, key_sha256: " + HASH + "}}", "keys.a must have either"),
        ("keys: {a: {key_sha256: 12ab}}", "not a SHA-256"),
        ("keys: {a: {key: 'two words'}}", "printable ASCII"),
        ("keys: {a: {key: ''}}", "empty"),
        ("keys: {'a b': {key: sk-a}}", "no name for a key"),
        ("keys: {a: {key: sk-a}, b: {key: sk-a}}", "a and b have the same key"),
        ("keys: [", "not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_key_file(written(tmp_path, text))
    assert message in str(caught.value)
    assert "sk-a" not in str(caught.value).replace("sk-a,", "")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot read"):
        read_key_file(tmp_path / "nothing.yaml")


def test_everybody_and_a_key_file_contradict(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="anonymous"):
        ServeSettings(key_file=tmp_path / "keys.yaml", allow_anonymous=True)


@pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")
def test_a_readable_file_of_plain_keys_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, GOOD)
    with caplog.at_level(logging.WARNING):
        read_key_file(path)
        assert not caplog.records
        path.chmod(0o644)
        read_key_file(path)
        assert "chmod 600" in caplog.text
        caplog.clear()
        path.write_text(f"keys: {{bob: {{key_sha256: {HASH}}}}}", encoding="utf-8")
        read_key_file(path)
        assert not caplog.records
