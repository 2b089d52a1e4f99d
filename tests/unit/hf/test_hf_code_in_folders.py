"""Code that comes with a model folder is never imported, whatever the folder says and the caller allows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

import telechat.hf as hf

EXPLOSIVE = "raise RuntimeError('code of the folder was run')\n"
FILES = (
    "configuration_telechat.py",
    "modeling_telechat.py",
    "tokenization_telechat.py",
    "custom_generate/generate.py",
)


@pytest.fixture(params=["folder_12b", "folder_bpe"])
def mined(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model folder full of code that raises when imported, and configs that name it everywhere."""
    folder = tmp_path / "mined"
    shutil.copytree(request.getfixturevalue(request.param), folder)
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(EXPLOSIVE)
    model = {"AutoModel": "modeling_telechat.M", "AutoModelForCausalLM": "modeling_telechat.M"}
    edit(
        folder / "config.json",
        auto_map={"AutoConfig": "configuration_telechat.C", **model},
        custom_pipelines={"text-generation": {"impl": "modeling_telechat.P", "pt": ["AutoModelForCausalLM"]}},
    )
    edit(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_telechat.T", None]},
        tokenizer_class="SomebodysTokenizer",
    )
    return folder


def edit(path: Path, **changes: Any) -> None:
    raw = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**raw, **changes}), encoding="utf-8")


@pytest.mark.parametrize("trust", [True, None, False])
def test_our_classes_are_used(mined: Path, trust: bool | None) -> None:
    assert type(AutoConfig.from_pretrained(mined, trust_remote_code=trust)) is hf.TelechatConfig
    model = AutoModelForCausalLM.from_pretrained(mined, trust_remote_code=trust)
    tokenizer = AutoTokenizer.from_pretrained(mined, trust_remote_code=trust)
    assert type(model) is hf.TelechatForCausalLM and type(tokenizer) is hf.TelechatTokenizer
    assert model.chat(tokenizer, "你好", max_new_tokens=2)[1][0]["content"] == "你好"


def test_loaders_we_do_not_have_do_not_run_it_either(mined: Path) -> None:
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModel.from_pretrained(mined, trust_remote_code=True)
    direct = hf.TelechatForCausalLM.from_pretrained(mined, trust_remote_code=True)
    assert type(direct) is hf.TelechatForCausalLM
    assert type(hf.TelechatTokenizer.from_pretrained(mined, trust_remote_code=True)) is hf.TelechatTokenizer


def test_pipeline(mined: Path) -> None:
    pipe = pipeline("text-generation", model=str(mined), trust_remote_code=True)
    assert type(pipe.model) is hf.TelechatForCausalLM
    out = pipe([{"role": "user", "content": "你好"}], max_new_tokens=2)
    assert out[0]["generated_text"][-1]["role"] == "assistant"


def test_saved_folders_name_no_code(mined: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    AutoModelForCausalLM.from_pretrained(mined).save_pretrained(saved)
    AutoTokenizer.from_pretrained(mined).save_pretrained(saved)
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((saved / name).read_text(encoding="utf-8"))
    assert not list(saved.glob("**/*.py"))
