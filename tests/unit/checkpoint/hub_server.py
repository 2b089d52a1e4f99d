"""A local server that speaks the file APIs of Hugging Face and ModelScope, with faults on request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "Tele-AI/Tiny"


@dataclass
class Repository:
    """What the server offers, how it misbehaves, and what it was asked.

    Attributes:
        files: path -> content.
        large: paths that are stored as LFS objects: with a SHA-256, and served from another address.
        token: refuse requests without it; None serves everyone.
        break_after: path -> bytes after which the connection is cut, once.
        busy: path -> how many times to answer 503 first.
        served: path -> content that differs from what the list announces.
        ignores_range: answer 200 with everything when asked for a part.
        requests: (path, Range header) of each file request.
        tokens: the Authorization header of every request, by kind: "list", "file", "storage".
    """

    files: dict[str, bytes]
    large: set[str] = field(default_factory=set)
    token: str | None = None
    break_after: dict[str, int] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    ignores_range: bool = False
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: dict[str, str | None] = field(default_factory=dict)
    endpoint: str = ""
    storage: str = ""

    def huggingface_listing(self) -> dict[str, object]:
        siblings = []
        for path, content in self.files.items():
            header = b"blob %d\0" % len(content)
            entry: dict[str, object] = {
                "rfilename": path,
                "size": len(content),
                "blobId": hashlib.sha1(header + content).hexdigest(),
            }
            if path in self.large:
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            siblings.append(entry)
        return {"id": MODEL, "sha": COMMIT, "siblings": siblings}

    def modelscope_listing(self) -> dict[str, object]:
        files: list[dict[str, object]] = [{"Path": "sub", "Name": "sub", "Type": "tree", "Size": 0}]
        for path, content in self.files.items():
            digest = hashlib.sha256(content).hexdigest()
            files.append({"Path": path, "Name": path, "Type": "blob", "Size": len(content), "Sha256": digest})
        return {"Code": 200, "Success": True, "Data": {"Files": files}}


@contextmanager
def serve(repository: Repository) -> Iterator[Repository]:
    """Serve on loopback: the hub on one port and its storage, as another host, on a second."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            authorization = self.headers.get("Authorization")
            if url.path.startswith("/storage/"):
                repository.tokens["storage"] = authorization
                self.send_file(unquote(url.path.removeprefix("/storage/")))
                return
            is_list = url.path in (
                f"/api/models/{MODEL}/revision/main",
                f"/api/v1/models/{MODEL}/repo/files",
            )
            repository.tokens["list" if is_list else "file"] = authorization
            if repository.token is not None and authorization != f"Bearer {repository.token}":
                self.answer(401, b"{}")
            elif is_list and url.path.startswith("/api/v1/"):
                assert query == {"Revision": "master", "Recursive": "true"}
                self.answer(200, json.dumps(repository.modelscope_listing()).encode())
            elif is_list:
                assert query == {"blobs": "true"}
                self.answer(200, json.dumps(repository.huggingface_listing()).encode())
            elif url.path == f"/api/v1/models/{MODEL}/repo":
                assert query["Revision"] == "master"
                self.redirect_or_send(query["FilePath"])
            elif url.path.startswith(f"/{MODEL}/resolve/{COMMIT}/"):
                self.redirect_or_send(unquote(url.path.split(f"/{COMMIT}/")[1]))
            else:
                self.answer(404, b"{}")

        def redirect_or_send(self, path: str) -> None:
            if path in repository.large:
                self.send_response(302)
                self.send_header("Location", f"{repository.storage}/storage/{path}")
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.send_file(path)

        def send_file(self, path: str) -> None:
            wanted = self.headers.get("Range")
            repository.requests.append((path, wanted))
            if repository.busy.get(path, 0) > 0:
                repository.busy[path] -= 1
                self.answer(503, b"")
                return
            content = repository.served.get(path, repository.files[path])
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if start and not repository.ignores_range:
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                content = content[start:]
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            limit = repository.break_after.pop(path, None)
            self.wfile.write(content if limit is None else content[:limit])
            if limit is not None:
                self.close_connection = True
                self.wfile.flush()
                self.connection.close()

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    repository.endpoint, repository.storage = (f"http://127.0.0.1:{one.server_port}" for one in servers)
    try:
        yield repository
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
