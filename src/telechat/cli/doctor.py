"""`telechat doctor`: what this machine has, what would be used of it, and whether a model folder is sound."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from telechat import __version__
from telechat.cli.parser import CommandParser
from telechat.cli.troubleshooting import link_for

if TYPE_CHECKING:
    from telechat.checkpoint.report import FolderReport

EXAMPLES = ("telechat doctor", "telechat doctor demo")

GIB = 2**30
# Extra -> the distribution whose presence shows that it is installed.
EXTRAS = {
    "hf": "transformers",
    "deepspeed": "deepspeed",
    "ray": "ray",
    "lm-eval": "lm-eval",
    "gguf": "llama-cpp-python",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "swanlab": "swanlab",
    "modelscope": "modelscope",
    "compiler": "ziglang",
    "dev": "pytest",
}
DEVICE_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "ASCEND_RT_VISIBLE_DEVICES",
    "ASCEND_HOME_PATH",
    "MODEL_PATH",
    "TELECHAT_HUB",
    "HF_ENDPOINT",
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat doctor`."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="also check this folder, hub id or demo")


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 when the model folder has a problem."""
    for title, rows in (
        ("versions", version_rows()),
        ("devices", device_rows()),
        ("kernels", kernel_rows()),
        ("attention", attention_rows()),
        ("extras", extra_rows()),
        ("environment", environment_rows()),
    ):
        print_section(title, rows)
    if args.model is None:
        return 0
    from telechat.checkpoint import check_folder, resolve_model
    from telechat.checkpoint.hub import DEMO

    report = check_folder(resolve_model(args.model))
    problems = [*report.problems, *tokenizer_problems(report)]
    rows = model_rows(report)
    if report.is_complete:
        rows.append(("executor", executor_text(report.folder, is_demo=args.model == DEMO)))
    print_section("model", [*rows, *(("problem", problem) for problem in problems)])
    print_section("verdict", [("model", "not usable" if problems else "complete")])
    return 1 if problems else 0


def print_section(title: str, rows: list[tuple[str, str]]) -> None:
    """A heading and its facts, one a line, with a link where the documentation explains one."""
    print(title)
    for name, value in rows:
        link = link_for(value)
        print(f"  {name:<26} {value}" + (f" (see {link})" if link else ""))


def version_rows() -> list[tuple[str, str]]:
    """Versions of ourselves and of what decides results."""
    import torch

    return [
        ("telechat", f"{__version__} in {Path(__file__).resolve().parents[1]}"),
        ("python", f"{platform.python_version()} at {sys.executable}"),
        ("system", platform.platform()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} CPU threads"),
    ]


def device_rows() -> list[tuple[str, str]]:
    """Every device with its memory, and the one `auto` takes."""
    import torch

    from telechat import device

    present = device.accelerator()
    devices = [torch.device("cpu")]
    if present is not None:
        devices += [torch.device(present.type, index) for index in range(device.device_count())]
    rows = []
    for item in devices:
        memory = device.memory_info(item)
        size = (
            f"{memory.free_bytes / GIB:.1f} of {memory.total_bytes / GIB:.1f} GiB free"
            if memory
            else "memory unknown"
        )
        bf16 = "bf16 in hardware" if device.supports_bfloat16(item) else "no bf16 in hardware"
        rows.append((str(item), f"{device.device_name(item)}, {size}, {bf16}"))
    if present is None:
        rows.append(("accelerator", "none that torch can use"))
    rows.append(("auto takes", str(device.resolve_device("auto"))))
    return rows


def kernel_rows() -> list[tuple[str, str]]:
    """What torch computes with, on the CPU and on accelerators, and whether our own kernels can be used."""
    from telechat.device import accelerator_kernels, cpu_kernels

    return [
        ("cpu", cpu_kernels()),
        ("cpu, telechat's own", own_cpu_kernels()),
        ("accelerator build", accelerator_kernels()),
    ]


def own_cpu_kernels() -> str:
    """The level of the kernels in C, or why there are none and what that costs."""
    from telechat.errors import TelechatError
    from telechat.ops.cpu import library
    from telechat.ops.cpu.context import choose_level

    obstacle = library.obstacle()
    if obstacle is not None:
        return f"none: {obstacle}. Models run on torch, slower, int4 and int8 most of all"
    try:
        return f"level {choose_level()}"
    except TelechatError as error:
        return f"none: {error.message}"


def attention_rows(
    names: tuple[str, ...] = ("auto", "flash", "sdpa", "reference"), *, head_dim: int = 128
) -> list[tuple[str, str]]:
    """What `--attention auto` takes on the device `auto` takes, and why not the others."""
    import torch

    from telechat.device import resolve_device, supports_bfloat16
    from telechat.errors import DeviceError
    from telechat.ops.attention import choose_attention

    place = resolve_device("auto")
    dtype = torch.bfloat16 if supports_bfloat16(place) else torch.float32
    rows = []
    for name in names:
        try:
            choice = choose_attention(name, device_type=place.type, dtype=dtype, head_dim=head_dim)
        except DeviceError as error:
            rows.append((name, error.message))
            continue
        shown = f"takes {choice.name}: {choice.reason}" if name == "auto" else "can run"
        rows.append((name, shown))
    return rows


def extra_rows() -> list[tuple[str, str]]:
    """Which optional parts are installed, and how to get the others."""
    rows = []
    for extra, package in EXTRAS.items():
        try:
            rows.append((extra, f"{package} {importlib.metadata.version(package)}"))
        except importlib.metadata.PackageNotFoundError:
            rows.append((extra, f"missing; pip install 'telechat[{extra}]'"))
    return rows


def environment_rows() -> list[tuple[str, str]]:
    """Variables that change what is used."""
    return [(name, os.environ.get(name, "not set")) for name in DEVICE_VARIABLES]


def model_rows(report: FolderReport) -> list[tuple[str, str]]:
    """What the folder holds."""
    rows = [("folder", str(report.folder))]
    if report.config is not None:
        config = report.config
        shape = f"{config.num_layers} layers, hidden {config.hidden_size}, {config.num_heads} heads"
        rows.append(("parameters", f"{report.num_parameters:,}: {shape}, vocabulary {config.vocab_size}"))
        rows.append(("training length", f"{config.training_seqlen} tokens"))
        ((_, attention),) = attention_rows(("auto",), head_dim=config.head_dim)
        rows.append(("attention auto", attention))
    stored = ", ".join(f"{count} {name}" for name, count in report.dtypes.items()) or "none"
    rows.append(
        (
            "weights",
            f"{len(report.weight_files)} files, {report.weight_bytes / GIB:.2f} GiB; tensors: {stored}",
        )
    )
    rows.append(("tokenizer", ", ".join(report.tokenizer_files) or "none"))
    return rows


def executor_text(folder: Path, *, is_demo: bool) -> str:
    """What the engine would run this model with on the device `auto` takes."""
    from telechat.engine.loading import expected_executor

    # The demo model is deterministic unless told otherwise.
    return expected_executor(folder, deterministic=is_demo)


def tokenizer_problems(report: FolderReport) -> list[str]:
    """What is wrong with the tokenizer, or between it and the model."""
    from telechat.errors import TelechatError
    from telechat.tokenizer import load_tokenizer

    if not report.tokenizer_files or report.config is None:
        return []
    try:
        tokenizer = load_tokenizer(report.folder)
    except TelechatError as error:
        return [error.message]
    if tokenizer.vocab_size > report.config.vocab_size:
        num_embeddings = report.config.vocab_size
        return [f"the tokenizer has {tokenizer.vocab_size} entries, the model {num_embeddings} embeddings"]
    return []
