"""Official folders as they are on disk become models with exactly their weights, or a one-line error."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.checkpoint.folders import (
    MIXTURE,
    TIED,
    TINY,
    assert_same_weights,
    random_model,
    tensors_of,
    write_bin,
    write_config,
    write_folder,
    write_safetensors,
    write_shards,
)
from torch import Tensor

from telechat import load_model
from telechat.checkpoint import read_config
from telechat.checkpoint.names import TOLERATED_BUFFERS
from telechat.checkpoint.weights import open_weights
from telechat.errors import CheckpointError, ConfigError, UsageError
from telechat.models import TeleChatModel

LAYOUTS = ("safetensors", "safetensors shards", "bin", "bin of torch 1.5", "bin shards")


def write_layout(folder: Path, tensors: dict[str, Tensor], layout: str) -> None:
    if layout == "safetensors":
        write_safetensors(folder, tensors)
    elif layout.startswith("bin") and "shards" not in layout:
        write_bin(folder, tensors, is_zip=layout == "bin")
    else:
        write_shards(folder, tensors, layout.split()[0])


def load(folder: Path, **options: Any) -> TeleChatModel:
    return load_model(folder, device="cpu", **options)


def error_of(folder: Path, kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", [TINY, TIED, MIXTURE], ids=["untied", "tied", "mixture"])
def test_every_layout(tmp_path: Path, config: Any, layout: str, prefix: bool) -> None:
    model = random_model(config)
    write_config(tmp_path, config)
    write_layout(tmp_path, tensors_of(model, prefix=prefix), layout)
    loaded = load(tmp_path)
    assert loaded.config == config
    assert_same_weights(loaded, model)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())  # training starts from here


def test_safetensors_win_over_pickles(tmp_path: Path) -> None:
    model = random_model()
    write_folder(tmp_path, model)
    write_bin(tmp_path, tensors_of(random_model(seed=1)))
    assert_same_weights(load(tmp_path), model)


class TestTheHead:
    """Decided by the tensors where config.json is silent; never invented."""

    def test_absent_and_config_silent_is_tied(self, tmp_path: Path) -> None:
        model = random_model(TIED)
        write_config(tmp_path, TIED, tie_word_embeddings=None, base_seqlen=None)
        write_safetensors(tmp_path, tensors_of(model, prefix=False))
        loaded = load(tmp_path)
        assert loaded.config.tie_word_embeddings
        assert loaded.config.rope.base_length == 4096  # what the 7B's code has as a constant
        assert loaded.output_weight is loaded.transformer.word_embeddings.weight
        assert read_config(tmp_path) == loaded.config

    def test_present_and_config_silent_is_untied(self, tmp_path: Path) -> None:
        model = random_model(TINY)
        write_config(tmp_path, TINY, tie_word_embeddings=None, base_seqlen=None)
        write_shards(tmp_path, tensors_of(model), "safetensors")
        loaded = load(tmp_path)
        assert not loaded.config.tie_word_embeddings
        assert loaded.config.rope.base_length == 8192
        assert_same_weights(loaded, model)
        assert read_config(tmp_path) == loaded.config

    def test_absent_although_untied(self, tmp_path: Path) -> None:
        write_config(tmp_path, TINY)
        write_safetensors(tmp_path, tensors_of(random_model(TIED)))
        text = error_of(tmp_path)
        assert "lacks lm_head.weight" in text
        assert "tie_word_embeddings" in text

    def test_stored_twice_but_equal(self, tmp_path: Path) -> None:
        model = random_model(TIED)
        tensors = tensors_of(model)
        write_config(tmp_path, TIED)
        write_safetensors(
            tmp_path, {**tensors, "lm_head.weight": tensors["transformer.word_embeddings.weight"].clone()}
        )
        assert_same_weights(load(tmp_path), model)

    def test_stored_but_different_although_tied(self, tmp_path: Path) -> None:
        write_config(tmp_path, TIED)
        write_safetensors(tmp_path, tensors_of(random_model(TINY)))
        assert "differs from transformer.word_embeddings.weight" in error_of(tmp_path)


class TestExperts:
    def test_count_from_the_tensors(self, tmp_path: Path) -> None:
        model = random_model(MIXTURE)
        write_config(tmp_path, MIXTURE, moe_config=None, num_experts_per_tok=2)
        write_safetensors(tmp_path, tensors_of(model))
        loaded = load(tmp_path)
        assert loaded.config.moe is not None
        assert (loaded.config.moe.num_experts, loaded.config.moe.num_experts_per_token) == (4, 2)
        assert_same_weights(loaded, model)

    @pytest.mark.parametrize("count", ["expert_num", "num_experts", "n_routed_experts", "num_local_experts"])
    @pytest.mark.parametrize("chosen", ["num_experts_chosen", "num_experts_per_tok", "moe_top_k", "top_k"])
    def test_aliases(self, tmp_path: Path, count: str, chosen: str) -> None:
        write_config(tmp_path, MIXTURE, moe_config=None, **{count: 4, chosen: 2})
        write_safetensors(tmp_path, tensors_of(random_model(MIXTURE)))
        assert load(tmp_path).config == MIXTURE

    def test_unknown_number_per_token(self, tmp_path: Path) -> None:
        write_config(tmp_path, MIXTURE, moe_config=None)
        write_safetensors(tmp_path, tensors_of(random_model(MIXTURE)))
        assert "num_experts_chosen" in error_of(tmp_path, ConfigError)


class TestWrongTensors:
    def test_missing(self, tmp_path: Path) -> None:
        tensors = tensors_of(random_model())
        del tensors["transformer.h.1.mlp.down_proj.bias"]
        write_config(tmp_path)
        write_safetensors(tmp_path, tensors)
        assert "lacks transformer.h.1.mlp.down_proj.bias" in error_of(tmp_path)

    def test_many_missing_are_counted(self, tmp_path: Path) -> None:
        tensors = tensors_of(random_model())
        write_config(tmp_path)
        write_safetensors(tmp_path, {name: tensors[name] for name in tensors if ".h.1." not in name})
        assert "and 7 more tensors" in error_of(tmp_path)

    def test_extra(self, tmp_path: Path) -> None:
        write_config(tmp_path)
        write_safetensors(tmp_path, {**tensors_of(random_model()), "transformer.h.2.bonus": torch.ones(2)})
        assert "transformer.h.2.bonus" in error_of(tmp_path)

    def test_misshapen(self, tmp_path: Path) -> None:
        write_config(tmp_path)
        tensors = {**tensors_of(random_model()), "transformer.ln_f.weight": torch.ones(17)}
        write_safetensors(tmp_path, tensors)
        text = error_of(tmp_path)
        assert "transformer.ln_f.weight has shape [17]; config.json says [16]" in text

    def test_whole_numbers(self, tmp_path: Path) -> None:
        write_config(tmp_path)
        tensors = {**tensors_of(random_model()), "transformer.ln_f.weight": torch.ones(16, dtype=torch.int8)}
        write_safetensors(tmp_path, tensors)
        assert "transformer.ln_f.weight has dtype int8" in error_of(tmp_path)

    def test_same_tensor_under_both_names(self, tmp_path: Path) -> None:
        write_config(tmp_path)
        write_safetensors(tmp_path, {**tensors_of(random_model()), "ln_f.weight": torch.ones(16)})
        assert "transformer.ln_f.weight twice" in error_of(tmp_path)

    def test_same_tensor_in_two_shards(self, tmp_path: Path) -> None:
        tensors = tensors_of(random_model())
        write_config(tmp_path)
        write_shards(tmp_path, tensors, "safetensors")
        write_safetensors(tmp_path, tensors, "model-00002-of-00002.safetensors")
        assert "is in both" in error_of(tmp_path)

    def test_known_buffers_are_passed_over(self, tmp_path: Path) -> None:
        model = random_model()
        buffers = {
            "transformer.h.0.self_attention.rotary_emb.inv_freq": torch.ones(2),
            "h.1.self_attention.rotary_emb.inv_freq": torch.ones(2),
            "transformer.rotary_emb.inv_freq": torch.ones(2),
        }
        assert all(any(pattern.fullmatch(name) for pattern in TOLERATED_BUFFERS) for name in buffers)
        write_config(tmp_path)
        write_safetensors(tmp_path, {**tensors_of(model), **buffers})
        assert_same_weights(load(tmp_path), model)

    def test_quantised(self, tmp_path: Path) -> None:
        write_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
        write_safetensors(tmp_path, {"transformer.h.0.mlp.up_proj.qweight": torch.ones(2, dtype=torch.int32)})
        assert "config.json: group_size is None" in error_of(tmp_path)


class TestDamagedFiles:
    @pytest.mark.parametrize("keep", [0, 5, 40, 0.5, 0.999])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_truncated(self, tmp_path: Path, layout: str, keep: float) -> None:
        write_config(tmp_path)
        write_layout(tmp_path, tensors_of(random_model()), layout)
        path = next(path for path in sorted(tmp_path.iterdir()) if path.suffix in (".safetensors", ".bin"))
        content = path.read_bytes()
        path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
        assert path.name in error_of(tmp_path)

    def test_longer_than_its_header(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, random_model())
        with (folder / "model.safetensors").open("ab") as file:
            file.write(b"xx")
        assert "its header says" in error_of(folder)

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    @pytest.mark.parametrize("content", [b"\0" * 100, b"\xff" * 100, b"abc" * 9, b"<html>404</html>" * 20])
    def test_garbage(self, tmp_path: Path, name: str, content: bytes) -> None:
        write_config(tmp_path)
        (tmp_path / name).write_bytes(content)
        assert name in error_of(tmp_path)

    @pytest.mark.parametrize("is_zip", [True, False])
    def test_changed_bytes(self, tmp_path: Path, is_zip: bool) -> None:
        """Whatever a damaged pickle makes its reader do, it ends in one error of ours, or in no error."""
        write_bin(tmp_path, {"a": torch.zeros(2, 2), "b": torch.ones(3)}, is_zip=is_zip)
        path = tmp_path / "pytorch_model.bin"
        content = path.read_bytes()
        source = random.Random(0)
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(source.randint(1, 6)):
                damaged[source.randrange(min(len(damaged), 600))] = source.randrange(256)
            path.write_bytes(damaged)
            with contextlib.suppress(CheckpointError):
                open_weights(tmp_path)

    def test_lfs_pointer(self, tmp_path: Path) -> None:
        write_config(tmp_path)
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
        (tmp_path / "model.safetensors").write_bytes(pointer)
        assert "git lfs pull" in error_of(tmp_path)

    @pytest.mark.parametrize("change", ["dtype", "shape", "offsets"])
    def test_contradictory_header(self, tmp_path: Path, change: str) -> None:
        folder = write_folder(tmp_path, random_model())
        path = folder / "model.safetensors"
        content = path.read_bytes()
        num_bytes = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + num_bytes])
        entry = header["transformer.ln_f.weight"]
        if change == "dtype":
            entry["dtype"] = "F33"
        elif change == "shape":
            entry["shape"] = [99]
        else:
            entry["data_offsets"] = entry["data_offsets"][:1]
        encoded = json.dumps(header).encode()
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + num_bytes :])
        assert "transformer.ln_f.weight" in error_of(folder)

    def test_a_dtype_that_cannot_be_read(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, random_model())
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F33"', 1))
        text = error_of(folder)
        assert "has dtype F33; F64, F32, F16" in text and "Download" not in text

    def test_pickle_that_would_run_code(self, tmp_path: Path) -> None:
        witness = tmp_path / "ran"

        class Malicious:
            def __reduce__(self) -> Any:
                return (Path.touch, (witness,))

        write_config(tmp_path)
        torch.save({"transformer.ln_f.weight": Malicious()}, tmp_path / "pytorch_model.bin")
        text = error_of(tmp_path)
        assert "could run code" in text
        assert "safetensors" in text
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious()))
        assert "pytorch_model.bin" in error_of(tmp_path)
        assert not witness.exists()

    def test_pickle_of_something_else(self, tmp_path: Path) -> None:
        write_config(tmp_path)
        torch.save({"epoch": 3}, tmp_path / "pytorch_model.bin")
        assert "not a table of tensors" in error_of(tmp_path)


class TestFolders:
    def test_no_weights(self, tmp_path: Path) -> None:
        write_config(tmp_path)
        assert "holds no weights" in error_of(tmp_path)

    def test_no_config(self, tmp_path: Path) -> None:
        write_safetensors(tmp_path, tensors_of(random_model()))
        assert "has no config.json" in error_of(tmp_path, ConfigError)

    @pytest.mark.parametrize(
        ("text", "word"), [("{", "line 1"), ("[1]", "expected an object"), ("\xff", "UTF-8")]
    )
    def test_unreadable_config(self, tmp_path: Path, text: str, word: str) -> None:
        folder = write_folder(tmp_path, random_model())
        (folder / "config.json").write_bytes(text.encode("latin-1"))
        assert word in error_of(folder, ConfigError)

    def test_missing_shard(self, tmp_path: Path) -> None:
        write_config(tmp_path)
        write_shards(tmp_path, tensors_of(random_model()), "safetensors")
        (tmp_path / "model-00002-of-00002.safetensors").unlink()
        assert "lacks model-00002-of-00002.safetensors" in error_of(tmp_path)

    def test_index_that_leaves_the_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        write_config(folder)
        write_safetensors(tmp_path, tensors_of(random_model()), "outside.safetensors")
        index = {"weight_map": {"transformer.ln_f.weight": "../outside.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        assert "plain file name" in error_of(folder)

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": 3}', "{", "[]"])
    def test_index_without_a_map(self, tmp_path: Path, content: str) -> None:
        write_config(tmp_path)
        (tmp_path / "model.safetensors.index.json").write_text(content, encoding="utf-8")
        assert "model.safetensors.index.json" in error_of(tmp_path)

    def test_index_that_is_wrong(self, tmp_path: Path) -> None:
        write_config(tmp_path)
        tensors = tensors_of(random_model())
        write_shards(tmp_path, tensors, "bin")
        write_bin(tmp_path, {"x": torch.ones(1)}, "pytorch_model-00001-of-00002.bin")
        assert "says that pytorch_model-00001-of-00002.bin holds" in error_of(tmp_path)

    def test_code_in_the_folder_is_not_imported(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path, random_model())
        raw = json.loads((folder / "config.json").read_text())
        raw["auto_map"] = {"AutoModelForCausalLM": "modeling_telechat.TelechatForCausalLM"}
        (folder / "config.json").write_text(json.dumps(raw))
        (folder / "modeling_telechat.py").write_text("raise SystemExit('imported')")
        load(folder)


class TestDtype:
    @pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16", "bf16", torch.float16])
    def test_by_name(self, tmp_path: Path, asked: Any) -> None:
        model = random_model()
        loaded = load(write_folder(tmp_path, model), dtype=asked)
        expected = {"bf16": torch.bfloat16}.get(asked) or (
            getattr(torch, asked) if isinstance(asked, str) else asked
        )
        assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
        assert_same_weights(loaded, model)

    def test_unknown(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="int4"):
            load(write_folder(tmp_path, random_model()), dtype="int4")

    @pytest.mark.parametrize("native", [True, False])
    @pytest.mark.parametrize("key", ["torch_dtype", "dtype", None])
    def test_auto_on_a_cpu(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool, key: str | None
    ) -> None:
        """bf16 where the processor multiplies it, else fp32; the config decides, then the file."""
        monkeypatch.setattr("telechat.checkpoint.loader.supports_bfloat16", lambda device: native)
        write_config(tmp_path, **({key: "bfloat16"} if key else {}))
        write_safetensors(tmp_path, tensors_of(random_model(), torch.bfloat16))
        assert load(tmp_path).dtype == (torch.bfloat16 if native else torch.float32)

    def test_fp16_becomes_fp32_on_a_cpu(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_config(tmp_path, torch_dtype="float16")
        write_safetensors(tmp_path, tensors_of(random_model(), torch.float16))
        with caplog.at_level(logging.INFO):
            assert load(tmp_path).dtype == torch.float32
        assert "float32" in caplog.text

    def test_wrong_value(self, tmp_path: Path) -> None:
        write_config(tmp_path, torch_dtype="float7")
        write_safetensors(tmp_path, tensors_of(random_model()))
        assert "torch_dtype is 'float7'" in error_of(tmp_path, ConfigError)


def test_options_reach_the_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, random_model())
    model = load(folder, attention="reference", rope_mode="static", static_length=77)
    assert model.attention_choice is not None
    assert model.attention_choice.name == "reference"
    assert (model.rope_mode, model.static_length) == ("static", 77)
    with pytest.raises(ConfigError, match="rope mode"):
        load(folder, rope_mode="fuzzy")
    with pytest.raises(ConfigError, match="static_length is 0"):
        load(folder, static_length=0)
