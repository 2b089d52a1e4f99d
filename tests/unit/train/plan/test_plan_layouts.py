"""Plans of large models on many devices: shares add up, published limits come out, and what fits is found."""

from __future__ import annotations

import dataclasses

import pytest

from telechat.errors import ConfigError, UsageError
from telechat.models import count_parameters
from telechat.models.presets import PRESETS, preset
from telechat.train.config import LoraSection
from telechat.train.distributed.layout import ParallelLayout
from telechat.train.plan import PlanRequest, predict
from telechat.train.plan.search import longest_length, nearest_fit, usable_bytes
from telechat.train.plan.words import describe_layout, parse_layout

GB = 10**9
HOST = 256 * GB


def request(name: str, layout: str, **changes: object) -> PlanRequest:
    values: dict[str, object] = {"task": "sft", "length": 2048, "recompute": "full"}
    values = {**values, **changes}
    return PlanRequest(config=preset(name), layout=parse_layout(layout), **values)  # type: ignore[arg-type]


def held(run: PlanRequest) -> dict[str, int]:
    """Bytes by row, device and host together."""
    return {row.name: row.device_bytes + row.host_bytes for row in predict(run).rows}


@pytest.mark.parametrize("name", PRESETS)
def test_one_device_holds_all_of_every_published_size(name: str) -> None:
    rows = held(request(name, "dp1,zero0", precision="fp32"))
    num_bytes = 4 * count_parameters(preset(name))
    assert rows["weights"] == num_bytes and rows["optimiser"] == 2 * num_bytes
    # At the worst moment the last gradients may still be missing; a tied head has two for a moment.
    head = 4 * preset(name).vocab_size * preset(name).hidden_size
    assert 0 < rows["gradients"] <= num_bytes + head


def test_ranks_of_data_divide_by_stage() -> None:
    """Stage 1 the optimiser, 2 also gradients, 3 also weights."""
    runs = {stage: request("telechat2-7b", f"dp8,zero{stage}", precision="bf16-pure") for stage in range(4)}
    rows = {stage: held(run) for stage, run in runs.items()}
    assert rows[1]["optimiser"] == pytest.approx(rows[0]["optimiser"] / 8, rel=0.01)
    assert rows[3]["optimiser"] == rows[2]["optimiser"] == rows[1]["optimiser"]
    assert rows[2]["gradients"] < rows[1]["gradients"]
    assert rows[3]["weights"] < rows[2]["weights"]


@pytest.mark.parametrize(("layout", "share"), [("tp2", 2), ("pp2", 2), ("tp2,pp2", 4)])
def test_axes_divide_the_weights(layout: str, share: int) -> None:
    whole = held(request("telechat2-7b", "dp1,zero0"))["optimiser"]
    part = held(request("telechat2-7b", f"{layout},zero0", micro_batches=2))["optimiser"]
    assert part == pytest.approx(whole / share, rel=0.2)


def test_experts_are_divided() -> None:
    whole = held(request("telechat2-39b-a12b", "dp1,zero0"))["optimiser"]
    part = held(request("telechat2-39b-a12b", "ep8,zero0"))["optimiser"]
    assert whole / 8 < part < whole / 4


def test_context_ranks_divide_activations() -> None:
    config = preset("telechat2-7b")
    whole = PlanRequest(config=config, task="sft", length=8192, layout=parse_layout("dp1,zero0"))
    part = dataclasses.replace(whole, layout=parse_layout("cp4,zero0"))
    activations = [predict(run).row("activations").device_bytes for run in (whole, part)]
    assert activations[1] == pytest.approx(activations[0] / 4, rel=0.05)


def test_a_pipeline_holds_batches_in_flight() -> None:
    few = predict(request("telechat2-7b", "pp4,zero0", micro_batches=4, recompute="none"))
    many = predict(request("telechat2-7b", "pp4,zero0", micro_batches=16, recompute="none"))
    assert few.row("activations") == many.row("activations")


def test_offload_moves_to_the_host() -> None:
    plan = predict(request("telechat2-7b", "dp1,zero3,offload"))
    assert plan.row("optimiser").device_bytes == 0
    assert plan.row("optimiser").host_bytes == 8 * count_parameters(preset("telechat2-7b"))
    assert plan.host_bytes > plan.device_bytes


def test_rounded_weights_of_an_adapters_base() -> None:
    floats = request("telechat2-7b", "dp1", task="lora", lora=LoraSection())
    rounded = dataclasses.replace(floats, weight_bits=4)
    linear = 30 * (4 * 4096**2 + 3 * 4096 * 12288)
    saved = held(floats)["weights"] - held(rounded)["weights"]
    assert saved == pytest.approx(linear * (2 - 0.5 - 4 / 32), rel=0.01)


def test_generating() -> None:
    config = preset("telechat2-7b")
    run = PlanRequest(config=config, task="generate", length=8192, rows=4, layout=parse_layout("tp2"))
    rows = {row.name: row.device_bytes for row in predict(run).rows}
    assert rows["cache"] == 30 * 4 * 8192 * 2 * 16 * 128 * 2
    assert rows["weights"] == pytest.approx(count_parameters(config), rel=0.01)
    assert rows["gradients"] == rows["optimiser"] == 0 and rows["logits"] > 0


PUBLISHED = {
    "LoRA, one 40 GB card, flash attention": ("lora", "dp1,zero3,offload", 40, "fused", 18432),
    "LoRA, one 32 GB card, without": ("lora", "dp1,zero3,offload", 32, "reference", 5120),
    "full, eight 40 GB cards, flash attention": ("sft", "dp8,zero3,offload", 40, "fused", 18432),
    "full, eight 32 GB cards, without": ("sft", "dp8,zero3,offload", 32, "reference", 5120),
}


def published(name: str, program: str) -> tuple[PlanRequest, int, int]:
    task, layout, size, attention, length = PUBLISHED[name]
    lora = LoraSection(targets=("query", "key_value", "dense")) if task == "lora" else None
    run = request(
        "telechat-7b",
        layout,
        task=task,
        lora=lora,
        precision="fp16",
        attention=attention,
        program=program,
    )
    return run, size * GB, length


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_limits_come_out(name: str) -> None:
    """The longest lengths of the original trainer's README, 7B with ZeRO-3, offload and checkpointing."""
    run, size, length = published(name, "original")
    assert longest_length(run, size) == pytest.approx(length, rel=0.25)


@pytest.mark.parametrize("name", PUBLISHED)
def test_ours_reaches_further(name: str) -> None:
    run, size, length = published(name, "telechat")
    assert longest_length(run, size) > length


def test_the_longest_length_is_the_longest() -> None:
    run, size, _ = published("LoRA, one 40 GB card, flash attention", "telechat")
    length = longest_length(run, size)
    usable = usable_bytes(size, on_accelerator=True)
    assert predict(dataclasses.replace(run, length=length)).device_bytes <= usable
    assert predict(dataclasses.replace(run, length=length + 128)).device_bytes > usable
    assert longest_length(run, GB // 2) == 0


def test_what_fits_is_nearest_to_itself() -> None:
    run = request("telechat2-7b", "dp8,zero3")
    fit = nearest_fit(run, 80 * GB, HOST)
    assert fit is not None and fit.request == run


def test_recomputation_comes_before_more_devices() -> None:
    run = request("telechat2-3b", "dp1", length=16384, recompute="none", precision="bf16-pure")
    fit = nearest_fit(run, 80 * GB, HOST)
    assert fit is not None and fit.request.recompute == "full"
    assert fit.request.layout.world_size == 1 and not fit.request.layout.offload
    assert fit.plan.device_bytes <= usable_bytes(80 * GB, on_accelerator=True)


def test_a_checkpoint_is_copied_to_the_host() -> None:
    num_parameters = count_parameters(preset("telechat2-7b"))
    for layout, share in (("dp1,zero0", 1), ("dp4,zero3", 4)):
        row = predict(request("telechat2-7b", layout)).row("checkpoint")
        assert row.device_bytes == 0
        assert row.host_bytes == pytest.approx(12 * num_parameters / share, rel=0.01)
    adapter = predict(request("telechat2-7b", "dp1,zero0", task="lora", lora=LoraSection()))
    assert adapter.row("checkpoint").host_bytes < 12 * num_parameters / 100


def test_offload_needs_memory_of_the_host() -> None:
    run = request("telechat2-7b", "dp1")
    here, elsewhere = nearest_fit(run, 40 * GB, HOST), nearest_fit(run, 40 * GB, 60 * GB)
    assert here is not None and here.request.layout.offload and here.plan.host_bytes <= HOST
    assert elsewhere is not None and elsewhere.request.layout.world_size > 1
    assert not elsewhere.request.layout.offload


def test_more_devices_where_nothing_else_helps() -> None:
    run = request("telechat2-115b", "dp1", length=4096)
    fit = nearest_fit(run, 80 * GB, HOST)
    assert fit is not None and fit.request.layout.world_size > 1


def test_nothing_fits_a_device_that_is_too_small() -> None:
    assert nearest_fit(request("telechat2-3b", "dp1"), GB // 4, HOST) is None


def test_generation_takes_tensor_ranks() -> None:
    config = preset("telechat2-35b")
    run = PlanRequest(config=config, task="generate", length=8192, layout=parse_layout("dp1"))
    fit = nearest_fit(run, 40 * GB, HOST)
    assert fit is not None and fit.request.layout.tp == 4


@pytest.mark.parametrize("text", ["dp8,tp2", "dp2,tp2,pp4,zero1", "dp1,zero2,offload", "dp2,cp4,zero3,heads"])
def test_layouts_are_read_as_they_are_shown(text: str) -> None:
    layout = parse_layout(text)
    assert parse_layout(describe_layout(layout)) == layout


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("dp8,ofload", "Did you mean offload"),
        ("dp8,dp4", "twice"),
        ("zero4", "stages are 0 to 3"),
        ("tp0", "at least 1"),
    ],
)
def test_layouts_that_are_refused(text: str, part: str) -> None:
    with pytest.raises((UsageError, ConfigError)) as caught:
        parse_layout(text)
    assert part in str(caught.value)


def test_a_layout_that_does_not_fit_the_model() -> None:
    with pytest.raises(ConfigError, match="3"):
        predict(request("telechat2-7b", "tp3"))
    with pytest.raises(ConfigError, match="no experts"):
        predict(request("telechat2-7b", "ep2"))


def test_a_request_that_contradicts_itself() -> None:
    config = preset("telechat2-7b")
    with pytest.raises(ConfigError, match="settings of an adapter"):
        PlanRequest(config=config, task="lora", length=1, layout=parse_layout("dp1"))
    with pytest.raises(ConfigError, match="length is 0"):
        PlanRequest(config=config, task="sft", length=0, layout=parse_layout("dp1"))
    with pytest.raises(ConfigError, match="how many processes"):
        PlanRequest(config=config, task="sft", length=1, layout=ParallelLayout())


def test_every_rank_of_an_adapter_counts() -> None:
    """Those of single layers, and the official program's, which takes alpha for the rank."""

    def optimiser(**section: object) -> int:
        lora = LoraSection(**section)  # type: ignore[arg-type]
        return held(request("telechat2-7b", "dp1,zero0", task="lora", lora=lora))["optimiser"]

    wide = optimiser(rank=16)
    assert optimiser(rank=8, rank_pattern={".*": 16}) == wide == optimiser(rank=8, alpha=16, mode="official")
    assert optimiser(rank=8) < optimiser(rank=8, rank_pattern={"query": 16}) < wide
