"""HTTPS with a certificate made here, and what is wrong with a certificate said before a model is loaded."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tests.unit.serve.asgi_calls import until
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.errors import ConfigError
from telechat.serve.admission import Admission
from telechat.serve.app import create_app
from telechat.serve.server import Server, bind, check_certificate, run_server
from telechat.serve.settings import ServeSettings

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate"),
]


def make_certificate(folder: Path, name: str = "server") -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_https_and_nothing_else(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    settings = ServeSettings(port=0, tls_cert=cert, tls_key=key, shutdown_seconds=1)

    async def scenario() -> None:
        admission = Admission(10)
        with bind(settings.host, settings.port) as listener:
            port = listener.getsockname()[1]
            app = create_app(FakeEngine(), settings, admission=admission)
            server = Server(app, settings, admission, port)
            task = asyncio.create_task(server.serve(sockets=[listener]))
            await until(lambda: server.started)
            trust = ssl.create_default_context(cafile=cert)
            async with httpx.AsyncClient(verify=trust, trust_env=False) as client:
                answer = await client.get(f"https://127.0.0.1:{port}/v1/models")
                assert answer.json()["data"][0]["id"] == "fake"
                body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
                answer = await client.post(f"https://127.0.0.1:{port}/v1/chat/completions", json=body)
                assert answer.text.endswith("data: [DONE]\n\n")
            async with httpx.AsyncClient(trust_env=False) as stranger:
                with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                    await stranger.get(f"https://127.0.0.1:{port}/health")
                with pytest.raises(httpx.TransportError):
                    await stranger.get(f"http://127.0.0.1:{port}/health")
            server.should_exit = True
            await task

    asyncio.run(scenario())


def missing(folder: Path) -> tuple[Path, Path]:
    return folder / "none.crt", folder / "none.key"


def no_pem(folder: Path) -> tuple[Path, Path]:
    cert, key = make_certificate(folder)
    cert.write_text("hello", encoding="utf-8")
    return cert, key


def of_another(folder: Path) -> tuple[Path, Path]:
    return make_certificate(folder)[0], make_certificate(folder, "other")[1]


def encrypted(folder: Path) -> tuple[Path, Path]:
    cert, key = make_certificate(folder)
    locked = folder / "locked.key"
    command = ["openssl", "ec", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, locked


@pytest.mark.parametrize("make", [missing, no_pem, of_another, encrypted])
def test_what_cannot_be_used(tmp_path: Path, make: Callable[[Path], tuple[Path, Path]]) -> None:
    cert, key = make(tmp_path)
    settings = ServeSettings(port=0, tls_cert=cert, tls_key=key)
    with pytest.raises(ConfigError, match=r"TLS file|cannot be used"):
        check_certificate(settings)

    def load() -> FakeEngine:
        raise AssertionError("the model must not be loaded")

    with pytest.raises(ConfigError):
        run_server(load, settings)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom file modes bind")
def test_a_key_that_may_not_be_read(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    key.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read"):
        check_certificate(ServeSettings(tls_cert=cert, tls_key=key))


def test_one_file_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both --tls-cert and --tls-key"):
        ServeSettings(tls_cert=tmp_path / "a")
    with pytest.raises(ConfigError, match="both --tls-cert and --tls-key"):
        ServeSettings(tls_key=tmp_path / "a")
