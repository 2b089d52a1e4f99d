"""Models by id from both hubs, against a local server that speaks their file APIs."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.checkpoint.folders import (
    assert_same_weights,
    random_model,
    tensors_of,
    write_folder,
    write_shards,
)
from tests.unit.checkpoint.hub_server import COMMIT, MODEL, Repository, serve

from telechat import load_model
from telechat.checkpoint import download, hub, resolve_model
from telechat.errors import CheckpointError, HubError, UsageError

WEIGHTS = "model.safetensors"
HUBS = ("huggingface", "modelscope")
TOKENS = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository as people publish them: with code, a picture and a second copy of the weights."""
    folder = write_folder(tmp_path_factory.mktemp("published"), random_model())
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {
        **files,
        "tokenizer.json": b"{}",
        "generation_config.json": b'{"top_k": 5}',
        "README.md": b"# Tiny",
        "modeling_telechat.py": b"raise SystemExit('imported')",
        "pytorch_model.bin": b"unsafe",
        "images/logo.png": b"png",
    }


@pytest.fixture
def repository(
    content: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Repository]:
    with serve(Repository(dict(content), large={WEIGHTS})) as repository:
        monkeypatch.setenv("HF_ENDPOINT", repository.endpoint)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", repository.endpoint + "/")
        monkeypatch.setenv("TELECHAT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "TELECHAT_HUB", *TOKENS.values()):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
        yield repository


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name not in (hub.MARKER, ".lock")}


def asked_for(repository: Repository, path: str) -> list[str | None]:
    return [wanted for name, wanted in repository.requests if name == path]


@pytest.mark.parametrize("name", HUBS)
class TestBothHubs:
    def test_downloads_what_is_needed_and_no_code(self, repository: Repository, name: str) -> None:
        folder = resolve_model(f"{name}:{MODEL}")
        assert names_in(folder) == {"config.json", "generation_config.json", "tokenizer.json", WEIGHTS}
        for path in names_in(folder):
            assert (folder / path).read_bytes() == repository.files[path]
        assert_same_weights(load_model(f"{name}:{MODEL}", device="cpu"), random_model())

    def test_second_time_needs_no_network(self, repository: Repository, name: str) -> None:
        first = resolve_model(f"{name}:{MODEL}")
        repository.requests.clear()
        repository.tokens.clear()
        assert resolve_model(f"{name}:{MODEL}") == first
        assert not repository.requests
        assert not repository.tokens

    def test_missing_or_shortened_file_is_fetched_again(self, repository: Repository, name: str) -> None:
        folder = resolve_model(f"{name}:{MODEL}")
        (folder / "tokenizer.json").unlink()
        (folder / WEIGHTS).write_bytes(b"short")
        repository.requests.clear()
        resolve_model(f"{name}:{MODEL}")
        assert {path for path, _ in repository.requests} == {"tokenizer.json", WEIGHTS}
        assert (folder / WEIGHTS).read_bytes() == repository.files[WEIGHTS]

    def test_broken_connection_is_resumed(
        self, repository: Repository, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        repository.break_after[WEIGHTS] = 1000
        with caplog.at_level(logging.WARNING):
            folder = resolve_model(f"{name}:{MODEL}")
        assert asked_for(repository, WEIGHTS) == [None, "bytes=1000-"]
        assert (folder / WEIGHTS).read_bytes() == repository.files[WEIGHTS]
        assert "connection lost" in caplog.text

    def test_resumed_by_a_later_run(
        self, repository: Repository, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "ATTEMPTS", 1)
        repository.break_after[WEIGHTS] = 700
        with pytest.raises(HubError, match="Cannot reach"):
            resolve_model(f"{name}:{MODEL}")
        folder = resolve_model(f"{name}:{MODEL}")
        assert asked_for(repository, WEIGHTS) == [None, "bytes=700-"]
        assert (folder / WEIGHTS).read_bytes() == repository.files[WEIGHTS]
        assert not list(folder.glob("*.part"))

    def test_server_that_ignores_ranges(self, repository: Repository, name: str) -> None:
        repository.break_after[WEIGHTS] = 1000
        repository.ignores_range = True
        folder = resolve_model(f"{name}:{MODEL}")
        assert (folder / WEIGHTS).read_bytes() == repository.files[WEIGHTS]

    def test_busy_server_is_asked_again(self, repository: Repository, name: str) -> None:
        repository.busy[WEIGHTS] = 2
        resolve_model(f"{name}:{MODEL}")
        assert len(asked_for(repository, WEIGHTS)) == 3

    def test_server_that_stays_busy(self, repository: Repository, name: str) -> None:
        repository.busy[WEIGHTS] = 99
        with pytest.raises(HubError, match="HTTP 503"):
            resolve_model(f"{name}:{MODEL}")

    def test_wrong_hash(self, repository: Repository, name: str) -> None:
        damaged = bytearray(repository.files[WEIGHTS])
        damaged[-1] ^= 1
        repository.served[WEIGHTS] = bytes(damaged)
        with pytest.raises(HubError, match=r"model\.safetensors of Tele-AI/Tiny is damaged: its sha256"):
            resolve_model(f"{name}:{MODEL}")
        folder = hub.cache_folder() / name / "Tele-AI--Tiny"
        assert not (folder / WEIGHTS).exists()
        assert not hub.is_complete(folder)

    def test_wrong_hash_of_a_small_file(self, repository: Repository, name: str) -> None:
        repository.served["tokenizer.json"] = b"[]"
        with pytest.raises(HubError, match=r"tokenizer\.json of Tele-AI/Tiny is damaged"):
            resolve_model(f"{name}:{MODEL}")

    def test_wrong_size(self, repository: Repository, name: str) -> None:
        repository.served["tokenizer.json"] = b"{} and more"
        with pytest.raises(HubError, match="it has 11 bytes, the hub announced 2"):
            resolve_model(f"{name}:{MODEL}")

    def test_part_of_another_revision_is_thrown_away(self, repository: Repository, name: str) -> None:
        folder = hub.cache_folder() / name / "Tele-AI--Tiny"
        folder.mkdir(parents=True)
        (folder / f"{WEIGHTS}.part").write_bytes(b"x" * 50)
        resolve_model(f"{name}:{MODEL}")
        assert asked_for(repository, WEIGHTS) == ["bytes=50-", None]
        assert (folder / WEIGHTS).read_bytes() == repository.files[WEIGHTS]

    def test_refused_without_token(self, repository: Repository, name: str) -> None:
        repository.token = "secret"
        with pytest.raises(HubError, match="HTTP 401") as caught:
            resolve_model(f"{name}:{MODEL}")
        assert TOKENS[name] in str(caught.value)

    def test_token_goes_to_the_hub_only(
        self, repository: Repository, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repository.token = "secret"
        monkeypatch.setenv(TOKENS[name], " secret\n")
        resolve_model(f"{name}:{MODEL}")
        assert repository.tokens == {"list": "Bearer secret", "file": "Bearer secret", "storage": None}

    def test_offline(self, repository: Repository, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids"):
            resolve_model(f"{name}:{MODEL}")
        assert not repository.tokens
        monkeypatch.delenv("HF_HUB_OFFLINE")
        folder = resolve_model(f"{name}:{MODEL}")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert resolve_model(f"{name}:{MODEL}") == folder

    def test_unreachable(self, repository: Repository, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
            monkeypatch.setenv(variable, "http://127.0.0.1:9")
        with pytest.raises(HubError, match=r"Cannot reach http://127\.0\.0\.1:9"):
            resolve_model(f"{name}:{MODEL}")

    def test_unknown_model(self, repository: Repository, name: str) -> None:
        with pytest.raises(HubError, match="has no model Tele-AI/Huge"):
            resolve_model(f"{name}:Tele-AI/Huge")

    @pytest.mark.parametrize("lost", ["config.json", WEIGHTS])
    def test_repository_without_a_model(self, repository: Repository, name: str, lost: str) -> None:
        del repository.files[lost]
        repository.files.pop("pytorch_model.bin")
        with pytest.raises(HubError, match=f"has no .*{lost}"):
            resolve_model(f"{name}:{MODEL}")

    def test_shards(self, repository: Repository, name: str, tmp_path: Path) -> None:
        write_shards(tmp_path / "shards", tensors_of(random_model()), "safetensors")
        del repository.files[WEIGHTS]
        repository.files |= {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
        repository.files["adapter.safetensors"] = b"not asked for"
        folder = resolve_model(f"{name}:{MODEL}")
        assert {path for path in names_in(folder) if path.startswith("model")} == {
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        }
        assert "adapter.safetensors" not in names_in(folder)
        assert_same_weights(load_model(folder, device="cpu"), random_model())

    @pytest.mark.parametrize("target", ["../outside.safetensors", "modeling_telechat.py", "gone.safetensors"])
    def test_index_that_names_what_it_should_not(
        self, repository: Repository, name: str, target: str
    ) -> None:
        del repository.files[WEIGHTS]
        index = {"weight_map": {"transformer.ln_f.weight": target}}
        repository.files["model.safetensors.index.json"] = json.dumps(index).encode()
        repository.files["../outside.safetensors"] = b"x"
        with pytest.raises(HubError, match="does not list as a weight file"):
            resolve_model(f"{name}:{MODEL}")

    def test_too_little_space(
        self, repository: Repository, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        write_shards(tmp_path / "shards", tensors_of(random_model()), "safetensors")
        del repository.files[WEIGHTS]
        repository.files |= {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
        usage = type(shutil.disk_usage("."))(100, 99, 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(HubError, match="TELECHAT_CACHE"):
            resolve_model(f"{name}:{MODEL}")


class TestWhichHub:
    def test_huggingface_unless_told_otherwise(
        self, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert resolve_model(MODEL).parent.name == "huggingface"
        monkeypatch.setenv("TELECHAT_HUB", "modelscope")
        assert resolve_model(MODEL).parent.name == "modelscope"
        assert resolve_model(f"huggingface:{MODEL}").parent.name == "huggingface"

    def test_unknown_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TELECHAT_HUB", "floppy")
        with pytest.raises(UsageError, match="huggingface or modelscope"):
            resolve_model(MODEL)
        with pytest.raises(UsageError, match="no folder floppy:"):
            resolve_model(f"floppy:{MODEL}")

    def test_token_file_of_huggingface(self, repository: Repository, tmp_path: Path) -> None:
        repository.token = "kept"
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "token").write_text("kept\n")
        resolve_model(MODEL)

    def test_copy_in_huggingface_cache_is_used(
        self, repository: Repository, content: dict[str, bytes], tmp_path: Path
    ) -> None:
        stored = tmp_path / "hf" / "hub" / "models--Tele-AI--Tiny"
        snapshot = stored / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (stored / "refs").mkdir()
        (stored / "refs" / "main").write_text(COMMIT)
        for name in ("config.json", "tokenizer.json"):
            (snapshot / name).write_bytes(content[name])
        assert resolve_model(MODEL) != snapshot  # no weights there yet
        shutil.rmtree(tmp_path / "cache")
        (snapshot / WEIGHTS).write_bytes(content[WEIGHTS])
        assert resolve_model(MODEL) == snapshot


class TestNames:
    def test_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "org" / "name"
        folder.mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert resolve_model("org/name") == Path("org/name")
        assert resolve_model(folder) == folder

    @pytest.mark.parametrize(
        "name", ["./gone", "/gone/away", "gone", "a/b/c", "..", "", "org/na me", "https://x/y"]
    )
    def test_neither_folder_nor_id(self, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        if name in ("..", ""):
            assert resolve_model(name) == Path(name)
        else:
            with pytest.raises(UsageError, match="There is no folder"):
                resolve_model(name)

    def test_file(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(UsageError, match="is a file"):
            resolve_model(tmp_path / "config.json")

    def test_path_is_never_an_id(self) -> None:
        with pytest.raises(UsageError, match="no folder"):
            resolve_model(Path("org/name"))

    def test_demo(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub, "__file__", str(tmp_path / "checkpoint" / "hub.py"))
        with pytest.raises(CheckpointError, match="no demo model"):
            resolve_model("demo")
        (tmp_path / "demo_model").mkdir()
        (tmp_path / "demo_model" / "config.json").write_text("{}")
        assert resolve_model("demo") == tmp_path / "demo_model"
