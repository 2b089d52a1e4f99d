"""`telechat deploy`: the HTTP API and the chat page at once, as two processes that stop together.

Settings come from flags, the environment, a file and defaults, in this order of weight.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telechat.cli.adapter_options import adapter_folders, add_lora
from telechat.cli.model_options import DEFAULT_MODEL
from telechat.cli.parser import CommandParser, port_number
from telechat.cli.processes import Group, Stopped, check_port_free, stop_signals, url_of
from telechat.cli.serve import KEY_VARIABLE, given_keys
from telechat.config import load_config
from telechat.errors import ConfigError

EXAMPLES = ("telechat deploy", "telechat deploy --model-path demo --api-port 8080 --web-port 8502")
LOG_LEVEL = "info"

DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"
MODEL_VARIABLE = "MODEL_PATH"
GPU_LIST = re.compile(r"(\d+(,\d+)*)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeploySettings:
    """The keys of deploy_config.yaml.

    Attributes:
        model_path: folder, hub id or `demo`; a relative folder counts from the file.
        api_host: address the API listens on.
        api_port: its port, 1 to 65535.
        web_host: address the page listens on.
        web_port: its port.
        gpu_devices: device numbers, "0" or "0,1", or what CUDA_VISIBLE_DEVICES takes besides; "" leaves the
            choice to the system.
        feedback_folder: where votes on answers are kept as training rows; "" for no voting. A relative folder
            counts from the file.
    """

    model_path: str = DEFAULT_MODEL
    api_host: str = "127.0.0.1"
    api_port: int = 8070
    web_host: str = "127.0.0.1"
    web_port: int = 8501
    gpu_devices: str | int = ""
    feedback_folder: str = ""

    def __post_init__(self) -> None:
        for name in ("api_port", "web_port"):
            port = getattr(self, name)
            if not 1 <= port <= 65535:
                raise ConfigError(f"{name} is {port}; ports go from 1 to 65535.")
        if self.api_port == self.web_port:
            raise ConfigError(
                f"api_port and web_port are both {self.api_port}.",
                hint="Give one another number: --web-port.",
            )
        if not self.model_path.strip():
            raise ConfigError("model_path is empty.", hint="Name a folder, a hub id, or demo.")


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat deploy`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file, see deploy_config.yaml")
    parser.add_argument(
        "--model-path", "--model", metavar="MODEL", help="a folder, a hub id, or demo (else $MODEL_PATH)"
    )
    add_lora(parser)
    parser.add_argument(
        "--gpu",
        type=_gpu_list,
        metavar="0,1",
        help=f"devices the model may use (else ${DEVICES_VARIABLE}); '' for all",
    )
    parser.add_argument("--api-host", metavar="HOST", help="where the API listens (default: 127.0.0.1)")
    parser.add_argument(
        "--api-port", type=port_number, metavar="PORT", help="port of the API (default: 8070)"
    )
    parser.add_argument("--web-host", metavar="HOST", help="where the page listens (default: 127.0.0.1)")
    parser.add_argument(
        "--web-port", type=port_number, metavar="PORT", help="port of the page (default: 8501)"
    )
    parser.add_argument(
        "--feedback-folder", metavar="DIR", help="let users vote on answers; keep votes here as training rows"
    )
    parser.add_argument("--api-key", metavar="KEY", help=f"key clients must send (else ${KEY_VARIABLE})")
    parser.add_boolean("--allow-anonymous", help="let a public address serve without a key")


def _gpu_list(text: str) -> str:
    """An argparse type: device numbers joined by commas, or nothing."""
    if not GPU_LIST.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0 or 0,1")
    return text


def resolve_settings(args: argparse.Namespace, environment: Mapping[str, str]) -> DeploySettings:
    """The settings by flag, then environment, then file, then default."""
    settings = load_config(DeploySettings, args.config)
    if not GPU_LIST.fullmatch(str(settings.gpu_devices)):
        raise ConfigError(
            f"gpu_devices is {settings.gpu_devices!r} ({args.config}); expected numbers such as 0 or 0,1.",
            hint="Correct it, or give the devices with --gpu.",
        )
    model = settings.model_path
    feedback = settings.feedback_folder
    if args.config is not None:
        model = _model_beside(args.config, model)
        feedback = feedback and str((args.config.resolve().parent / feedback).resolve())
    return DeploySettings(
        model_path=args.model_path or environment.get(MODEL_VARIABLE) or model,
        api_host=_first_given(args.api_host, settings.api_host),
        api_port=_first_given(args.api_port, settings.api_port),
        web_host=_first_given(args.web_host, settings.web_host),
        web_port=_first_given(args.web_port, settings.web_port),
        gpu_devices=_first_given(args.gpu, environment.get(DEVICES_VARIABLE), settings.gpu_devices),
        feedback_folder=_first_given(args.feedback_folder, feedback),
    )


def _first_given(*values: Any) -> Any:
    """The first value that is not None: an empty text or 0 is a decision too."""
    return next(value for value in values if value is not None)


def _model_beside(config: Path, model: str) -> str:
    """A relative folder named in a settings file, counted from the file; names and hub ids as they are."""
    path = Path(model)
    if model == DEFAULT_MODEL or path.is_absolute():
        return model
    beside = (config.resolve().parent / path).resolve()
    return str(beside) if model.startswith(".") or beside.is_dir() else model


def run(args: argparse.Namespace) -> int:
    """Start both processes, say where they are, and stop both when one ends or the user asks."""
    settings = resolve_settings(args, os.environ)
    check_port_free(settings.api_host, settings.api_port, port_flag="--api-port", host_flag="--api-host")
    check_port_free(settings.web_host, settings.web_port, port_flag="--web-port", host_flag="--web-host")
    if settings.feedback_folder:
        from telechat.serve.page.votes import VoteFolder

        # So that one that cannot be is known before the model loads.
        VoteFolder(Path(settings.feedback_folder))
    api_environment, page_environment = child_environments(settings, args)
    group = Group()
    api_url = url_of(settings.api_host, settings.api_port)
    try:
        with stop_signals():
            group.start("The API", api_command(settings, args), api_environment)
            group.start("The page", page_command(settings, api_url), page_environment)
            group.wait_until(lambda: is_healthy(api_url))
            page_url = url_of(settings.web_host, settings.web_port)
            group.wait_until(lambda: is_healthy(page_url))
            print(f"API   {api_url}   documentation: {api_url}/docs")
            print(f"Page  {page_url}")
            print("Ctrl-C stops both.", flush=True)
            group.watch()
    except Stopped:
        return 0
    finally:
        group.stop()
    return 0


def child_environments(
    settings: DeploySettings, args: argparse.Namespace
) -> tuple[dict[str, str], dict[str, str]]:
    """The environments of the API and of the page: devices, and a key they share."""
    from telechat.serve.keys import resolve_keys
    from telechat.serve.settings import ServeSettings, is_loopback

    api = dict(os.environ)
    if str(settings.gpu_devices):
        api[DEVICES_VARIABLE] = str(settings.gpu_devices)
    elif args.gpu is not None:
        # `--gpu ''` lifts what the environment says.
        api.pop(DEVICES_VARIABLE, None)
    has_public_page = not is_loopback(settings.web_host)
    keys = resolve_keys(
        ServeSettings(
            # A page that others reach is a way to the model like any other, so it needs the key too.
            host=settings.web_host if has_public_page else settings.api_host,
            api_keys=given_keys(args.api_key),
            allow_anonymous=args.allow_anonymous,
        )
    )
    if keys:
        # By environment, because a command line can be read by every user of the machine.
        api[KEY_VARIABLE] = keys[0]
    if has_public_page:
        rule = "browsers ask for the key as a password" if keys else "whoever reaches it can use the model"
        print(f"notice: the page listens on {settings.web_host}; {rule}.", file=sys.stderr)
    return api, dict(api)


def api_command(settings: DeploySettings, args: argparse.Namespace) -> list[str]:
    """The command of the API process."""
    command = [sys.executable, "-m", "telechat", "serve", settings.model_path]
    command += ["--host", settings.api_host, "--port", str(settings.api_port)]
    for name, folder in adapter_folders(args).items():
        command += ["--lora", f"{name}={folder}"]
    if args.allow_anonymous:
        command.append("--allow-anonymous")
    return [*command, "--log-level", args.log_level or LOG_LEVEL]


def page_command(settings: DeploySettings, api_url: str) -> list[str]:
    """The command of the page process."""
    command = [sys.executable, "-m", "telechat.cli.page_process", "--api-url", api_url]
    command += ["--host", settings.web_host, "--port", str(settings.web_port)]
    return [*command, "--feedback-folder", settings.feedback_folder] if settings.feedback_folder else command


def is_healthy(url: str) -> bool:
    """Whether the server at `url` says that it is ready."""
    # No proxy: a proxy set for the outside world must not be asked for this machine's own servers.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
