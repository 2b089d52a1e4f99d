"""docs/operate.md says what is so: its key file is read, its metrics, options and log fields exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from telechat.serve.key_file import read_key_file
from telechat.serve.limits import Limits
from telechat.serve.observer import log_line
from telechat.serve.record import Record

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The page's only block of that language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_the_key_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(block("yaml"), encoding="utf-8")
    path.chmod(0o600)
    alice, bob = read_key_file(path)
    assert (alice.name, bob.name) == ("alice", "bob")
    assert None not in (
        alice.limits.requests_per_minute,
        alice.limits.tokens_per_minute,
        alice.limits.concurrency,
    )
    assert bob.limits == Limits()


def test_metrics(client: TestClient) -> None:
    names = set(re.findall(r"telechat_[a-z_]+[a-z]", PAGE))
    families = text_string_to_metric_families(client.get("/metrics").text)
    known = {name for family in families for name in (family.name, f"{family.name}_total")}
    assert names and names <= known


def test_options() -> None:
    commands = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    serve = commands[commands.index("## telechat serve") :]
    serve = serve[: serve.index("\n## ")]
    options = set(re.findall(r"--[a-z-]+[a-z]", PAGE))
    assert len(options) > 12 and all(f"{option} " in serve or f"{option}\n" in serve for option in options)


def test_the_line_of_the_log() -> None:
    shown = json.loads(block("json"))
    record = Record("POST", "/", "10.0.0.7", was_admitted=True, first_token_seconds=0.1)
    made = log_line(record, 1.0)
    assert shown.keys() - {"key"} == made.keys()
    assert list(shown)[:2] == list(made)[:2]
