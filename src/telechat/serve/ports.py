"""Why nothing can listen on an address, in words for whoever named it. Knows no servers."""

from __future__ import annotations

import errno

from telechat.errors import TelechatError, UsageError


def cannot_listen(
    host: str, port: int, error: OSError, *, port_flag: str = "--port", host_flag: str = "--host"
) -> TelechatError:
    """What to raise for `error`, with which the system refused to bind `host`:`port`.

    Args:
        port_flag, host_flag: the options that choose another port or host.
    """
    if error.errno == errno.EADDRINUSE:
        return TelechatError(
            f"Port {port} on {host} is in use.",
            hint=f"Stop the program that uses it, or choose another port with {port_flag}.",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return TelechatError(
            f"Port {port} needs administrator rights.", hint=f"Choose one above 1023 with {port_flag}."
        )
    return UsageError(
        f"Nothing can listen on {host} port {port}: {error.strerror}.",
        hint=f"Give another host with {host_flag}.",
    )
