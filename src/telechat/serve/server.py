"""Running the service: port first, then the model, then requests, until told to stop.

The port is taken before the model is loaded, because a busy one should not cost minutes to find out. SIGTERM
and Ctrl-C let running answers finish; a second one cuts them off.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from telechat.errors import ConfigError, UsageError
from telechat.serve.access_log import AccessLog
from telechat.serve.admission import Admission
from telechat.serve.app import create_app
from telechat.serve.contract import ServiceEngine
from telechat.serve.key_ring import resolve_ring
from telechat.serve.ports import cannot_listen
from telechat.serve.protocol import Patience, PatientProtocol
from telechat.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

# Longer than the idle time of common gateways, so that they and not we close a connection both still use.
KEEP_ALIVE_SECONDS = 75
NICE = 5
# What MindIE's daemon says once it is ready.
MINDIE_READY = "Daemon start success!"


def run_server(start_engine: Callable[[], ServiceEngine], settings: ServeSettings) -> int:
    """Serve until stopped; returns the exit code.

    Args:
        start_engine: loads the model; called once the port is ours.
        settings: how to listen and whom to let in.

    Raises:
        TelechatError: the port is busy, a file that the settings name is wrong, or the model does not load.
        KeyboardInterrupt: stopped by Ctrl-C, after running answers have finished.
    """
    with ExitStack() as sockets:
        addresses = ((settings.host, settings.port), *settings.also_listen)
        listeners = [sockets.enter_context(bind(host, port)) for host, port in addresses]
        # All that can be wrong in the settings is found before the model is loaded.
        ring = resolve_ring(settings)
        check_certificate(settings)
        log = _open_access_log(settings.access_log)
        engine = start_engine()
        admission = Admission(settings.max_pending_requests)
        app = create_app(engine, settings, ring=ring, admission=admission, access_log=log)
        server = Server(app, settings, admission, listeners[0].getsockname()[1])
        settle()
        try:
            asyncio.run(server.serve(sockets=listeners))
        except OSError as error:
            # Another program that also held the port without listening was faster.
            raise cannot_listen(settings.host, settings.port, error) from error
        finally:
            gc.unfreeze()
            engine.close()
            if log is not None:
                log.close()
    if server.was_interrupted:
        raise KeyboardInterrupt
    return 0


def settle() -> None:
    """Prepare this thread for a long life beside the engine's process, which has been started."""
    # What lives as long as the service need not be searched for garbage again and again.
    gc.collect()
    gc.freeze()
    if hasattr(os, "setpriority"):
        # The engine's threads wait for one another: a core taken from one of them stops all. This thread,
        # which seldom has much to do, gives way.
        os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not yet listening: clients are refused until the model is loaded.

    Raises:
        TelechatError: the port is in use or needs rights.
        UsageError: the host is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UsageError(
            f"The host {host!r} cannot be found.", hint="Give an address with --host."
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":
            # A port whose last connections are still closing is free; on Windows this would mean taking it by
            # force.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise cannot_listen(host, port, error) from error
    return listener


def check_certificate(settings: ServeSettings) -> None:
    """Make sure that the certificate and its key can be used.

    Raises:
        ConfigError: a file that is missing, no PEM, encrypted, or a key of another certificate.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return
    for path in (settings.tls_cert, settings.tls_key):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"The TLS file {path} cannot be read: {error.strerror}.") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password to try, OpenSSL would ask for one at the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except ssl.SSLError as error:
        raise ConfigError(
            f"The certificate {settings.tls_cert} and the key {settings.tls_key} cannot be used: "
            f"{error.reason or error}.",
            hint="Both must be PEM files, the key not encrypted and made for this certificate.",
        ) from error


def _open_access_log(target: str | None) -> AccessLog | None:
    if target is None:
        return None
    return AccessLog(None if target == "-" else Path(target))


class Server(uvicorn.Server):
    """uvicorn with our ending: while running answers finish, new requests are refused."""

    def __init__(
        self,
        app: object,
        settings: ServeSettings,
        admission: Admission,
        port: int,
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            http=partial(PatientProtocol, patience=patience),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
        super().__init__(config)
        self.was_interrupted = False
        self._admission = admission
        self._announces = settings.mindie.announces
        self._url = _url("http" if settings.tls_cert is None else "https", settings.host, port)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        logger.info("listening on %s (documentation: %s/docs)", self._url, self._url)
        if self._announces:
            logger.info(MINDIE_READY)
            # The original's output is sent to a file and searched for this line.
            print(MINDIE_READY, flush=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Like uvicorn's, except that signals are not raised again: SIGTERM after a clean end is success."""
        names = (signal.SIGINT, signal.SIGTERM)
        previous = {name: signal.signal(name, self.handle_exit) for name in names}
        try:
            yield
        finally:
            for name, handler in previous.items():
                signal.signal(name, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._admission.is_draining = True
        self.was_interrupted = self.was_interrupted or sig == signal.SIGINT
        super().handle_exit(sig, frame)


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
