"""`telechat plan`: how much memory a run needs, whether it fits, and what does; nothing is downloaded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telechat.cli.parser import CommandParser, byte_size, positive_int
from telechat.errors import UsageError

if TYPE_CHECKING:
    from telechat.models.config import TeleChatConfig
    from telechat.train.plan import Plan, PlanRequest
    from telechat.train.plan.recipe import Comparison
    from telechat.train.plan.search import Fit

EXAMPLES = (
    "telechat plan telechat-7b --task lora --layout dp1,offload --recompute full --length 8192 "
    "--device-memory 40GB",
    "telechat plan telechat2-35b --task generate --layout tp2 --length 8192 --rows 16 --device-memory 80GB",
)

GB = 1e9
# What a run loads after its imports: a tokenizer, the code of products and of the optimiser.
_LOADED_LATER = 40_000_000
# Options that describe the run, with the values that ask for nothing: a recipe says all this itself.
_OF_THE_RUN: dict[str, object] = {
    "task": "sft",
    "length": None,
    "rows": None,
    "micro_batches": None,
    "precision": "bf16",
    "attention": "auto",
    "recompute": "none",
    "optimizer": "adamw",
    "packing": False,
    "lora_rank": None,
    "lora_targets": None,
    "quantize": None,
    "program": "telechat",
}


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat plan`."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a published size such as telechat2-7b (or its hub id), a model folder, or a config.json",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="plan this recipe of telechat train")
    parser.add_argument(
        "--after",
        type=Path,
        metavar="RUN",
        help="plan the run in this folder, and show what it measured beside that",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    _add_devices(parser)
    _add_run(parser)


def _add_devices(parser: CommandParser) -> None:
    group = parser.add_argument_group("devices")
    group.add_argument(
        "--layout",
        metavar="WORDS",
        help="devices and what they share, such as dp8,tp2: dp, tp, pp, cp, ep with a number, zero0 to zero3 "
        "(default 3), offload, deepspeed, ring, heads (default: one device, or the recipe's)",
    )
    group.add_argument(
        "--device-memory",
        type=byte_size,
        metavar="SIZE",
        help="memory of each device, such as 40GB: says whether it fits, what would, and the longest length",
    )
    group.add_argument(
        "--host-memory",
        type=byte_size,
        default=256_000_000_000,
        metavar="SIZE",
        help="with --device-memory: memory of the host for each device, where weights may be offloaded to "
        "(default: 256GB)",
    )
    group.add_argument(
        "--device",
        choices=("accelerator", "cpu"),
        default="accelerator",
        help="kind of the devices (default: accelerator)",
    )


def _add_run(parser: CommandParser) -> None:
    group = parser.add_argument_group("the run", "of MODEL; the recipe of --config or --after says all this")
    group.add_argument(
        "--task",
        choices=("pretrain", "sft", "lora", "generate"),
        default="sft",
        help="what the model does; pretrain and sft train all weights (default: sft)",
    )
    group.add_argument("--length", type=positive_int, metavar="TOKENS", help="of a row (default: 2048)")
    group.add_argument(
        "--rows", type=positive_int, metavar="N", help="of a micro batch, or answers at once (default: 1)"
    )
    group.add_argument(
        "--micro-batches", type=positive_int, metavar="N", help="of a step, for each dp (default: 1)"
    )
    group.add_argument(
        "--precision", choices=("fp32", "bf16", "bf16-pure", "fp16"), default="bf16", help="default: bf16"
    )
    group.add_argument(
        "--attention",
        choices=("auto", "flash", "sdpa", "reference"),
        default="auto",
        help="reference holds a layer's scores, the others never do (default: auto)",
    )
    group.add_argument(
        "--recompute", choices=("none", "selective", "full"), default="none", help="default: none"
    )
    group.add_argument(
        "--optimizer", choices=("adamw", "adamw-8bit", "muon"), default="adamw", help="default: adamw"
    )
    group.add_argument("--packing", action="store_true", help="rows hold several conversations")
    group.add_argument("--lora-rank", type=positive_int, metavar="R", help="with --task lora (default: 8)")
    group.add_argument(
        "--lora-targets", metavar="NAMES", help="with --task lora: layers by the ends of their names, a,b"
    )
    group.add_argument(
        "--quantize", choices=("int8", "int4"), help="round the weights of linear layers that are not trained"
    )
    group.add_argument(
        "--program",
        choices=("telechat", "original"),
        default="telechat",
        help="original: the first TeleChat trainer under DeepSpeed, with whole logits (default: telechat)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the plan; 1 when the devices are too small."""
    from telechat.train.plan import predict
    from telechat.train.plan.search import longest_length, nearest_fit, usable_bytes

    if sum(given is not None for given in (args.model, args.config, args.after)) != 1:
        raise UsageError("Give one of MODEL, --config and --after.", hint="See telechat plan --help.")
    request = make_request(args)
    plan = predict(request)
    comparison = None
    if args.after is not None:
        from telechat.train.plan.recipe import compare

        comparison = compare(args.after, request)
    shown: dict[str, Any] = plan_values(request, plan)
    fit = None
    if args.device_memory is not None:
        usable = usable_bytes(args.device_memory, on_accelerator=request.on_accelerator)
        shown |= {"device_memory_bytes": args.device_memory, "usable_bytes": usable}
        shown["fits"] = plan.device_bytes <= usable and plan.host_bytes <= args.host_memory
        shown["longest_length"] = longest_length(request, args.device_memory)
        fit = None if shown["fits"] else nearest_fit(request, args.device_memory, args.host_memory)
        shown["nearest"] = None if fit is None else plan_values(fit.request, fit.plan)
    if comparison is not None:
        shown["measured_bytes"] = comparison.measured_bytes
        shown["predicted_by_measured"] = round(comparison.ratio, 4)
    if args.json:
        print(json.dumps(shown, indent=2))
    else:
        print_plan(request, plan, shown, fit, comparison)
    return 0 if shown.get("fits", True) else 1


def make_request(args: argparse.Namespace) -> PlanRequest:
    """The run that the options describe.

    Raises:
        UsageError, ConfigError: an unknown model or word, or settings that exclude each other.
    """
    from telechat.train.plan import PlanRequest
    from telechat.train.plan.words import parse_layout

    on_accelerator = args.device == "accelerator"
    if args.model is None:
        return _recipe_request(args)
    _check_adapter_options(args)
    return PlanRequest(
        config=model_config(args.model),
        task=args.task,
        length=args.length or 2048,
        layout=parse_layout(args.layout or "dp1"),
        rows=args.rows or 1,
        micro_batches=args.micro_batches or 1,
        packed=args.packing,
        precision=args.precision,
        attention="reference" if args.attention == "reference" else "fused",
        recompute=args.recompute,
        optimizer=args.optimizer,
        lora=_lora(args) if args.task == "lora" else None,
        weight_bits={"int8": 8, "int4": 4, None: None}[args.quantize],
        program=args.program,
        on_accelerator=on_accelerator,
        program_bytes=program_bytes(on_accelerator=on_accelerator),
    )


def _check_adapter_options(args: argparse.Namespace) -> None:
    if args.task != "lora" and (args.lora_rank or args.lora_targets):
        raise UsageError("--lora-rank and --lora-targets go with --task lora.")
    if args.quantize and args.task in ("sft", "pretrain"):
        raise UsageError(
            f"--quantize {args.quantize}: --task {args.task} trains all weights, in floats.",
            hint="Use --task lora or generate.",
        )


def _lora(args: argparse.Namespace) -> Any:
    from telechat.train.config import LoraSection

    given: dict[str, Any] = {"quantize": args.quantize}
    if args.lora_rank:
        given["rank"] = args.lora_rank
    if args.lora_targets:
        given["targets"] = tuple(args.lora_targets.split(","))
    return LoraSection(**given)


def _recipe_request(args: argparse.Namespace) -> PlanRequest:
    """The run of a recipe, or of a run's folder, on its own layout or another.

    Raises:
        UsageError: an option that the recipe would overrule, or a model that is neither here nor known.
    """
    _refuse_run_options(args)
    from dataclasses import replace

    from telechat.config import load_config
    from telechat.train.config import TrainConfig
    from telechat.train.plan.recipe import read_recipe, recipe_request
    from telechat.train.plan.words import parse_layout
    from telechat.train.setup import known_config

    recipe = load_config(TrainConfig, args.config) if args.config else read_recipe(args.after)
    if args.layout:
        recipe = replace(recipe, parallel=parse_layout(args.layout))
    layout = recipe.parallel
    on_accelerator = args.device == "accelerator" and recipe.device != "cpu"
    model = known_config(recipe.model)
    if model is None:
        raise UsageError(
            f"{recipe.model.start_from} is neither on this machine nor a published size.",
            hint="Download it first, or plan a folder.",
        )
    return recipe_request(
        recipe,
        model,
        world_size=(layout.dp or 1) * layout.num_model_ranks * layout.ep,
        on_accelerator=on_accelerator,
        program_bytes=program_bytes(on_accelerator=on_accelerator),
    )


def _refuse_run_options(args: argparse.Namespace) -> None:
    for name, default in _OF_THE_RUN.items():
        if getattr(args, name) != default:
            raise UsageError(
                f"--{name.replace('_', '-')} goes with MODEL; {args.config or args.after} says it itself.",
                hint="Change the recipe, or leave the option out.",
            )


def model_config(name: str) -> TeleChatConfig:
    """The configuration of a published size by its name or hub id, of a folder, or of a file.

    Raises:
        UsageError: none of these.
    """
    from telechat.models.presets import PRESETS, published_size
    from telechat.train.config import ModelSection
    from telechat.train.setup import model_config as read_model

    path = Path(name).expanduser()
    if path.is_file():
        return read_model(ModelSection(config=str(path), tokenizer="."))
    if path.is_dir() or name == "demo":
        return read_model(ModelSection(start_from=name))
    size = published_size(name)
    if size is None:
        raise UsageError(
            f"{name} is neither a folder, a file nor a published size.",
            hint=f"Published sizes: {', '.join(PRESETS)}.",
        )
    return size


def program_bytes(*, on_accelerator: bool) -> int:
    """What a process holds beside tensors: on a CPU what this one holds, which has imported the same code."""
    from telechat.device import CPU, memory_in_use
    from telechat.train.plan.request import PlanRequest

    default = int(PlanRequest.program_bytes)
    if on_accelerator:
        return default
    # What training imports and this verb does not need.
    import telechat.train.run  # noqa: F401

    in_use = memory_in_use(CPU)
    return default if in_use is None else in_use + _LOADED_LATER


def plan_values(request: PlanRequest, plan: Plan) -> dict[str, Any]:
    """A plan as values for JSON; sizes in bytes of one device, or of the host for one process."""
    from telechat.train.plan.words import describe_layout

    return {
        "task": request.task,
        "layout": describe_layout(request.layout),
        "devices": request.layout.world_size,
        "length": request.length,
        "rows_of_micro_batch": request.rows,
        "micro_batches": request.micro_batches,
        "recompute": request.recompute,
        "bytes": {row.name: row.device_bytes for row in plan.rows},
        "device_bytes": plan.device_bytes,
        "host_bytes": plan.host_bytes,
        "moment": plan.moment,
        "rank": plan.rank,
    }


def print_plan(
    request: PlanRequest, plan: Plan, shown: dict[str, Any], fit: Fit | None, comparison: Comparison | None
) -> None:
    """The plan as a table."""
    print(
        f"{request.task}, rows of {request.length} tokens x {request.rows}, {shown['layout']} "
        f"({_num_devices(shown['devices'])}), recompute {request.recompute}"
    )
    print(f"{'GB':>26}{'host':>9}" if plan.host_bytes else f"{'GB':>26}")
    for row in plan.rows:
        host = f"{row.host_bytes / GB:9.2f}" if row.host_bytes else ""
        print(f"  {row.name:<14}{row.device_bytes / GB:10.2f}{host}")
    host = f"{plan.host_bytes / GB:9.2f}" if plan.host_bytes else ""
    print(f"  {'together':<14}{plan.device_bytes / GB:10.2f}{host}")
    print(f"The most is needed when {plan.moment}, on rank {plan.rank}.")
    if request.trains and not request.on_accelerator and not request.returns_freed_memory:
        print(
            "The C library keeps freed memory: the process may hold up to half as much again. A recipe with "
            "return_freed_memory: true keeps to the plan, in slower steps."
        )
    if comparison is not None:
        print(
            f"The run measured {comparison.measured_bytes / GB:.2f} GB: predicted by measured is "
            f"{comparison.ratio:.2f}."
        )
    if "fits" in shown:
        _print_verdict(shown, fit)


def _num_devices(number: int) -> str:
    return f"{number} device" if number == 1 else f"{number} devices"


def _print_verdict(shown: dict[str, Any], fit: Fit | None) -> None:
    size = (
        f"{shown['device_memory_bytes'] / GB:.1f} GB, of which {shown['usable_bytes'] / GB:.1f} can be used"
    )
    print(f"{'Fits' if shown['fits'] else 'Does not fit'}: each device has {size}.")
    longest = shown["longest_length"]
    print(f"Longest rows that fit: {longest} tokens." if longest else "No length fits.")
    if shown["fits"]:
        return
    if fit is None:
        print("No layout of up to 256 such devices fits.")
        return
    near = shown["nearest"]
    print(
        f"Nearest that fits: --layout {near['layout']} ({_num_devices(near['devices'])}) --recompute "
        f"{near['recompute']} --micro-batches {near['micro_batches']}, "
        f"{near['device_bytes'] / GB:.2f} GB a device."
    )
