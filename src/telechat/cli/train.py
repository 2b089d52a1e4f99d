"""`telechat train`: train a model from a recipe, any field of which a flag can replace."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

from telechat.cli.model_source import add_register_path, report_register_path
from telechat.cli.parser import CommandParser
from telechat.errors import UsageError

log = logging.getLogger(__name__)

EXAMPLES = (
    "telechat train --config recipes/sft.yaml",
    "telechat train --config recipes/lora.yaml --schedule.total-steps 10 --output.folder runs/try",
)
LOG_LEVEL = "info"
CONFIG_HELP = "the recipe, a YAML file; or MindFormers' finetune_*.yaml"

# Flags of the original commands -> the recipe's fields they are short for.
_SHORT = {
    "train_dataset": "data.train_file",
    "on_bad_row": "data.on_bad_row",
    "engine": "parallel.engine",
    "zero_stage": "parallel.zero_stage",
    "offload": "parallel.offload",
}
# Flags of the original commands -> keys of MindFormers' run files that they replace.
_OF_RUN_FILES = ("run_mode", "load_checkpoint")


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat train`."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help=CONFIG_HELP)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the recipe with all fields and flags, check it against its model, and train nothing",
    )
    parser.add_argument(
        "--train-dataset",
        "--train-dataset-dir",
        metavar="FILE",
        help="rows to train on; short for --data.train-file",
    )
    parser.add_argument(
        "--on-bad-row", choices=("skip", "stop"), help="at malformed rows; short for --data.on-bad-row"
    )
    parser.add_argument(
        "--engine", choices=("torch", "deepspeed"), help="of several processes; short for --parallel.engine"
    )
    parser.add_argument(
        "--zero-stage",
        choices=("0", "1", "2", "3"),
        help="what data-parallel processes divide; short for --parallel.zero-stage",
    )
    parser.add_argument(
        "--offload",
        action="store_const",
        const="true",
        help="keep weights and optimiser in the host's memory; short for --parallel.offload true",
    )
    group = parser.add_argument_group("MindFormers' run files", "as run_mindformer.py takes them")
    group.add_argument("--run-mode", metavar="MODE", help="train or finetune (default: as the file says)")
    group.add_argument(
        "--load-checkpoint", metavar="PATH", help="the checkpoint to start from (default: as the file says)"
    )
    add_register_path(group)
    from telechat.config import dotted_keys
    from telechat.train.config import TrainConfig

    parser.override_keys = frozenset(dotted_keys(TrainConfig))
    parser.add_argument_group(
        "fields of the recipe",
        "--section.key value replaces a field, --key value one without a section: "
        "--schedule.warmup-steps 100, --attention sdpa",
    )


def run(args: argparse.Namespace) -> int:
    """Hand over to the trainer."""
    short = {field: value for name, field in _SHORT.items() if (value := getattr(args, name)) is not None}
    overrides = {**short, **args.overrides}
    report_register_path(args)
    replaced = {name: value for name in _OF_RUN_FILES if (value := getattr(args, name)) is not None}
    args.config = recipe_of(args.config, overrides, replaced)
    if args.dry_run:
        from telechat.config import load_config, to_yaml
        from telechat.train.config import TrainConfig

        config = load_config(TrainConfig, args.config, overrides)
        print(to_yaml(config), end="", flush=True)
        # Imported here: torch takes seconds, and mistakes in the recipe should not.
        from telechat.train.dry_run import check_run

        check_run(config)
        return 0
    from telechat.train.run import main

    main(str(args.config), overrides)
    return 0


def recipe_of(path: Path, overrides: Mapping[str, str], replaced: Mapping[str, str] | None = None) -> Path:
    """The recipe itself; of a MindFormers run file the recipe that it becomes, in a file of its own.

    Args:
        overrides: fields of the recipe that flags replace, by dotted key.
        replaced: values of the run file that flags replace, by key.

    Raises:
        UsageError: `replaced` is not empty, and the file is a recipe.
    """
    from telechat.config import read_yaml
    from telechat.run_file import is_run_file

    raw = read_yaml(path)
    if not is_run_file(raw):
        if replaced:
            named = " and ".join(f"--{name.replace('_', '-')}" for name in replaced)
            raise UsageError(
                f"{named} belongs to MindFormers' run files; {path} is a recipe.",
                hint="Name the model with --model.start-from.",
            )
        return path
    import atexit
    import shutil
    import tempfile

    import yaml

    from telechat.train.mindformers import translate

    found = translate({**raw, **(replaced or {})}, path.name)
    tokenizer = found.tokenizer if found.tokenizer is not None and found.tokenizer.exists() else None
    start = None if found.checkpoint is None else str(found.checkpoint)
    if found.checkpoint is not None and found.checkpoint.exists():
        from telechat.checkpoint.formats.reference import reference_folder

        start = str(reference_folder(found.checkpoint, config=path, tokenizer=tokenizer))
    if start is not None:
        found.recipe["model"]["start_from"] = start
    if found.ignored:
        log.info("%s: not used here: %s", path.name, ", ".join(found.ignored))
    given = {key.replace("-", "_"): value for key, value in overrides.items()}
    tokens_of = given.get("model.tokenizer") or given.get("model.start_from", start)
    check_special_ids(found.special_ids, tokens_of, path.name)
    folder = tempfile.mkdtemp(prefix="telechat-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder) / f"{path.stem}.yaml"
    target.write_text(yaml.safe_dump(found.recipe, sort_keys=False), encoding="utf-8")
    return target


def check_special_ids(named: Mapping[str, int], model: str | None, source: str) -> None:
    """Refuse ids of control tokens that are not those of the model's tokenizer; the data has the latter.

    Raises:
        ConfigError: they differ.
        CheckpointError, TokenizerError: there is no such model, or no tokenizer in it.
    """
    if not named or model is None:
        return
    from telechat.checkpoint import resolve_model
    from telechat.errors import ConfigError
    from telechat.tokenizer import load_tokenizer

    special = load_tokenizer(resolve_model(model)).special
    for name, token_id in named.items():
        ours = getattr(special, name.removesuffix("_token_id"))
        if ours is not None and ours != token_id:
            raise ConfigError(
                f"{source}: {name} is {token_id}, but the tokenizer of {model} has {ours}.",
                hint="Name the tokenizer that the data was made for, or correct the number.",
            )
