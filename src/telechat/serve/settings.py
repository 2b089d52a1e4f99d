"""Settings of the HTTP service.

Everything an operator decides about the service itself; the model's own settings (device, dtype, attention)
are handed to the engine. Knows nothing of HTTP or of engines.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from telechat.errors import ConfigError
from telechat.serve.mindie.settings import MindieSettings

DEFAULT_PORT = 8070
DEFAULT_SHUTDOWN_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How the service listens, whom it lets in and what it refuses.

    Attributes:
        host: address to listen on; the default is this machine only.
        port: TCP port, 1 to 65535; 0 lets the system choose (tests).
        api_keys: keys that clients may send as `Authorization: Bearer KEY`; without one, here or in
            `key_file`, no key is asked for on a loopback host, and a generated one elsewhere.
        key_file: a YAML file of further keys, with names and limits (see `key_file`).
        allow_anonymous: let everybody in on a public host without a key.
        api_key_file: where a generated key is kept; None is `telechat/api_key` in the user's settings folder.
        served_model_name: the model's name for clients; None takes it from the engine.
        cors_origins: web origins that browsers may call from, `("*",)` for all; empty is none. The original
            service allowed all.
        max_body_bytes: larger request bodies are refused with 413.
        max_pending_requests: requests being answered or waiting; further ones get 429 with Retry-After.
        max_choices: largest `n` of one request.
        max_prompt_tokens: longer prompts are refused; None is as long as the model takes.
        request_seconds: how long a request may take from its arrival to its last token; None is no limit.
        access_log: file that gets a line of JSON for every request, "-" for stderr, None for no log.
        log_prompts: write prompts into the access log.
        tls_cert: certificate chain in PEM form; with `tls_key` the service speaks HTTPS only.
        tls_key: its private key, not encrypted.
        shutdown_seconds: how long running answers may take to finish once the service is told to stop.
        also_listen: further addresses and ports for the same routes.
        lora_dir: let keys that may do so load adapters from folders below this one; None: nobody may.
        mindie: limits and facts of the MindIE routes.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_keys: tuple[str, ...] = ()
    key_file: Path | None = None
    allow_anonymous: bool = False
    api_key_file: Path | None = None
    served_model_name: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 1024 * 1024
    max_pending_requests: int = 256
    max_choices: int = 16
    max_prompt_tokens: int | None = None
    request_seconds: float | None = None
    access_log: str | None = None
    log_prompts: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    shutdown_seconds: int = DEFAULT_SHUTDOWN_SECONDS
    also_listen: tuple[tuple[str, int], ...] = ()
    lora_dir: Path | None = None
    mindie: MindieSettings = field(default_factory=MindieSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; ports go from 1 to 65535.")
        for name in ("max_body_bytes", "max_pending_requests", "max_choices", "shutdown_seconds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise ConfigError(f"max_prompt_tokens is {self.max_prompt_tokens}; it must be at least 1.")
        if self.request_seconds is not None and not self.request_seconds > 0:
            raise ConfigError(f"request_seconds is {self.request_seconds}; it must be above 0.")
        self._check_access()

    def _check_access(self) -> None:
        if not all(is_sound_key(key) for key in self.api_keys):
            raise ConfigError(
                "An API key is empty or has characters other than printable ASCII without spaces.",
                hint="Use letters, digits and punctuation.",
            )
        if self.allow_anonymous and (self.api_keys or self.key_file is not None):
            raise ConfigError(
                "An API key is set and anonymous access is allowed as well.",
                hint="Leave out --allow-anonymous or the key.",
            )
        if self.lora_dir is not None and self.allow_anonymous and not self.is_loopback:
            raise ConfigError(
                "Adapters can be loaded by requests, and everybody is let in without a key.",
                hint="Leave out --lora-dir or --allow-anonymous.",
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError(
                "TLS needs a certificate and its key; only one of them is given.",
                hint="Give both --tls-cert and --tls-key.",
            )
        if self.log_prompts and self.access_log is None:
            raise ConfigError(
                "Prompts are to be logged, but there is no access log.",
                hint="Leave out --log-prompts, or name a log with --access-log.",
            )

    @property
    def is_loopback(self) -> bool:
        """Only programs on this machine can reach the service."""
        return all(is_loopback(host) for host in (self.host, *(host for host, _ in self.also_listen)))


def is_sound_key(key: str) -> bool:
    """Printable ASCII without spaces, so that it fits a header; not empty."""
    return bool(key) and key.isascii() and key.isprintable() and " " not in key


def is_loopback(host: str) -> bool:
    """True for `localhost` and addresses such as 127.0.0.1 and ::1; other names count as public."""
    return host.lower() == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Whether a host is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
