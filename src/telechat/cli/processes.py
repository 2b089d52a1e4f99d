"""Several server processes as one: started together, watched, and stopped together.

Knows commands and ports; nothing of models or of what the servers serve.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from telechat.errors import TelechatError, UsageError
from telechat.serve.ports import cannot_listen
from telechat.serve.settings import DEFAULT_SHUTDOWN_SECONDS

POLL_SECONDS = 0.1
# A server that is told to stop lets running answers finish, then ends its engine.
GRACE_SECONDS = DEFAULT_SHUTDOWN_SECONDS + 15.0
WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class Stopped(Exception):
    """The process was asked to end (SIGTERM, or its terminal was closed)."""


def url_of(host: str, port: int) -> str:
    """The address under which this machine reaches a server that listens on `host`."""
    name = WILDCARD_HOSTS.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def check_port_free(host: str, port: int, *, port_flag: str, host_flag: str) -> None:
    """Raise, naming the flags that help, when nothing can listen on `host`:`port`."""
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror as error:
        raise UsageError(
            f"{host!r} is not an address of this machine.", hint=f"Give another with {host_flag}."
        ) from error
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name != "nt":
            # A port in TIME_WAIT is free for a server; on Windows the option would mean "take it by force".
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise cannot_listen(host, port, error, port_flag=port_flag, host_flag=host_flag) from error


class Group:
    """Child processes that live and die together.

    Each child gets a session of its own, so that Ctrl-C reaches only this process, which then stops them in
    order.
    """

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a child; its output goes where ours goes."""
        if sys.platform == "win32":
            flags = subprocess.CREATE_NEW_PROCESS_GROUP
            child = subprocess.Popen(command, env=dict(environment), creationflags=flags)
        else:
            child = subprocess.Popen(command, env=dict(environment), start_new_session=True)
        self._children[name] = child

    def check(self) -> None:
        """Raise when a child has ended."""
        for name, child in self._children.items():
            code = child.poll()
            if code is not None:
                raise TelechatError(
                    f"{name} ended with exit code {code}.",
                    hint="Its message above says why; the rest was stopped.",
                )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return when `ready()` is true; raise when a child ends before."""
        while not ready():
            self.check()
            time.sleep(POLL_SECONDS)

    def watch(self) -> None:
        """Return never; raise when a child ends."""
        while True:
            self.check()
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Ask all children to end; after a grace period, or on a second Ctrl-C, end them."""
        for child in self._children.values():
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            for child in self._children.values():
                child.wait(timeout=max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt, Stopped):
            for child in self._children.values():
                child.kill()
        for child in self._children.values():
            child.wait()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Within it, SIGTERM and a closed terminal raise Stopped, so that children are stopped too."""

    def raise_stopped(number: int, frame: FrameType | None) -> None:
        raise Stopped

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {name: signal.signal(getattr(signal, name), raise_stopped) for name in names}
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(getattr(signal, name), handler)
