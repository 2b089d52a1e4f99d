"""What two model hubs answer about a model's files: the Hugging Face hub and ModelScope.

Each hub is a value with its addresses and environment variables and a function from a listing's JSON to
records. Knows the file APIs; knows nothing of where files are kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from telechat.errors import HubError

_NOT_A_LISTING = "Try again later; if it persists, the hub has changed its file API."


@dataclass(frozen=True)
class HubFile:
    """A file on a hub.

    Attributes:
        path: its path in the repository.
        num_bytes: its size.
        sha256: hex digest of its content, or None when the hub gives none.
        git_sha1: hex id as a git blob, or None; the Hugging Face hub gives one for small files.
        url: where its content is; a redirect to another host is usual.
    """

    path: str
    num_bytes: int
    sha256: str | None
    git_sha1: str | None
    url: str


@dataclass(frozen=True)
class Listing:
    """The files of a model at one revision."""

    revision: str
    files: tuple[HubFile, ...]


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A model hub.

    Attributes:
        name: as users type it.
        default_endpoint: base address.
        endpoint_variable: environment variable that replaces the base address (a mirror).
        token_variable: environment variable with an access token.
        revision: the branch that is downloaded.
        listing_url: address of the file list for (endpoint, model id, revision).
        read_listing: its JSON to records, for (endpoint, model id, revision, answer).
        token_file: where the hub's own tools keep a token, or None.
    """

    name: str
    default_endpoint: str
    endpoint_variable: str
    token_variable: str
    revision: str
    listing_url: Callable[[str, str, str], str]
    read_listing: Callable[[str, str, str, Any], Listing]
    token_file: Callable[[], Path] | None = None

    @property
    def endpoint(self) -> str:
        """Base address without a trailing slash."""
        return os.environ.get(self.endpoint_variable, "").rstrip("/") or self.default_endpoint

    def headers(self) -> dict[str, str]:
        """Request headers, with the access token if there is one; httpx drops it on a redirect elsewhere."""
        headers = {"User-Agent": "telechat"}
        token = os.environ.get(self.token_variable, "").strip()
        if not token and self.token_file is not None and self.token_file().is_file():
            token = self.token_file().read_text(encoding="utf-8").strip()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def list_files(self, client: httpx.Client, model_id: str) -> Listing:
        """The model's files.

        Raises:
            HubError: unreachable, refused, unknown model, or an answer that is no file list.
        """
        url = self.listing_url(self.endpoint, model_id, self.revision)
        try:
            response = client.get(url, headers=self.headers())
        except httpx.TransportError as error:
            raise self.unreachable(error) from error
        self.raise_for_status(response, model_id)
        try:
            return self.read_listing(self.endpoint, model_id, self.revision, response.json())
        except (ValueError, KeyError, TypeError) as error:
            raise HubError(
                f"{self.endpoint} did not answer with a file list for {model_id}.", hint=_NOT_A_LISTING
            ) from error

    def raise_for_status(self, response: httpx.Response, model_id: str) -> None:
        """Turn an HTTP failure into a HubError that says what to do."""
        status = response.status_code
        if status in (401, 403):
            raise HubError(
                f"{self.endpoint} refuses access to {model_id} (HTTP {status}).",
                hint=f"Check the spelling; for a private or gated model accept its terms on its page and set "
                f"{self.token_variable} to an access token.",
            )
        if status == 404:
            raise HubError(f"{self.endpoint} has no model {model_id}.", hint="Check the spelling of the id.")
        if status >= 400:
            raise HubError(f"{self.endpoint} answered HTTP {status} for {model_id}.", hint="Try again later.")

    def unreachable(self, error: Exception) -> HubError:
        """The error for a hub that cannot be reached."""
        return HubError(
            f"Cannot reach {self.endpoint}: {str(error) or type(error).__name__}.",
            hint=f"Check the network, set {self.endpoint_variable} to a mirror, or give a local folder.",
        )


def _read_huggingface(endpoint: str, model_id: str, revision: str, answer: Any) -> Listing:
    commit = str(answer["sha"])
    files = []
    for entry in answer["siblings"]:
        lfs = entry.get("lfs") or {}
        path = str(entry["rfilename"])
        files.append(
            HubFile(
                path=path,
                num_bytes=int(lfs.get("size", entry.get("size") or 0)),
                sha256=lfs.get("sha256"),
                git_sha1=None if lfs else entry.get("blobId"),
                url=f"{endpoint}/{model_id}/resolve/{commit}/{quote(path)}",
            )
        )
    return Listing(commit, tuple(files))


def _read_modelscope(endpoint: str, model_id: str, revision: str, answer: Any) -> Listing:
    files = tuple(
        HubFile(
            path=str(entry["Path"]),
            num_bytes=int(entry["Size"]),
            sha256=entry.get("Sha256") or None,
            git_sha1=None,
            url=f"{endpoint}/api/v1/models/{model_id}/repo?Revision={revision}&FilePath={quote(entry['Path'])}",
        )
        for entry in answer["Data"]["Files"]
        if entry.get("Type") != "tree"
    )
    return Listing(revision, files)


def huggingface_home() -> Path:
    """Where Hugging Face's tools keep their files."""
    return Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()


HUGGINGFACE = Hub(
    name="huggingface",
    default_endpoint="https://huggingface.co",
    endpoint_variable="HF_ENDPOINT",
    token_variable="HF_TOKEN",
    revision="main",
    listing_url=lambda endpoint, model, revision: (
        f"{endpoint}/api/models/{model}/revision/{revision}?blobs=true"
    ),
    read_listing=_read_huggingface,
    token_file=lambda: Path(os.environ.get("HF_TOKEN_PATH") or huggingface_home() / "token"),
)
MODELSCOPE = Hub(
    name="modelscope",
    default_endpoint="https://www.modelscope.cn",
    endpoint_variable="MODELSCOPE_ENDPOINT",
    token_variable="MODELSCOPE_API_TOKEN",
    revision="master",
    listing_url=lambda endpoint, model, revision: (
        f"{endpoint}/api/v1/models/{model}/repo/files?Revision={revision}&Recursive=true"
    ),
    read_listing=_read_modelscope,
)
HUBS = {hub.name: hub for hub in (HUGGINGFACE, MODELSCOPE)}
