"""Keys, cross-origin rules, limits, health, the model list and the documentation page."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.unit.serve.conftest import MakeClient
from tests.unit.serve.serve_fakes import FakeEngine

from telechat.engine import EngineClosedError, QueueFullError
from telechat.errors import ConfigError
from telechat.serve.admission import Admission
from telechat.serve.app import create_app
from telechat.serve.errors import ApiError
from telechat.serve.keys import default_key_file, generated_key, resolve_keys
from telechat.serve.settings import ServeSettings, is_loopback

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer secretx",
        "Basic secret",
        "secret",
        "Bearer sécret",
    ],
)
def test_wrong_keys(make_client: MakeClient, header: str | None) -> None:
    client = make_client(api_keys=("secret", "other"))
    headers = {} if header is None else {"Authorization": header.encode()}
    for path in ("/v1/models", "/v1/models/fake", "/nope"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.post(CHAT, json=BODY, headers=headers).status_code == 401


@pytest.mark.parametrize("key", ["secret", "other"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_right_keys(make_client: MakeClient, key: str, scheme: str) -> None:
    client = make_client(api_keys=("secret", "other"))
    assert client.post(CHAT, json=BODY, headers={"Authorization": f"{scheme} {key}"}).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json"])
def test_open_routes(make_client: MakeClient, path: str) -> None:
    assert make_client(api_keys=("secret",)).get(path).status_code == 200


def test_loopback_needs_no_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    assert resolve_keys(ServeSettings(api_key_file=file)) == ()
    assert not file.exists()


def test_a_public_host_gets_a_key_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "key"
    settings = ServeSettings(host="0.0.0.0", api_key_file=file)
    (key,) = resolve_keys(settings)
    assert len(key) > 40
    assert file.read_text() == key + "\n"
    if os.name != "nt":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key in capsys.readouterr().err
    assert resolve_keys(settings) == (key,)
    assert key not in capsys.readouterr().err


def test_keys_given_or_none_wanted(tmp_path: Path) -> None:
    file = tmp_path / "key"
    assert resolve_keys(ServeSettings(host="0.0.0.0", api_keys=("k",), api_key_file=file)) == ("k",)
    assert resolve_keys(ServeSettings(host="0.0.0.0", allow_anonymous=True, api_key_file=file)) == ()
    assert not file.exists()
    with pytest.raises(ConfigError, match="anonymous"):
        ServeSettings(api_keys=("k",), allow_anonymous=True)


@pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")
def test_a_readable_key_file_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-kept\n")
    file.chmod(0o644)
    assert generated_key(file) == "sk-kept"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff\xfe", "schlüssel".encode()])
def test_a_damaged_key_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="does not hold a key"):
        generated_key(file)


def test_a_key_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Cannot keep the API key"):
        generated_key(tmp_path / "file" / "key")


@pytest.mark.skipif(os.name == "nt", reason="XDG is for POSIX systems")
def test_where_the_key_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_key_file() == tmp_path / "telechat" / "api_key"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("127.0.0.1.example.com", False),
        ("localhost.example.com", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    "fields", [{"port": 65536}, {"port": -1}, {"max_body_bytes": 0}, {"api_keys": ("ä",)}]
)
def test_settings_are_checked(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ServeSettings(**fields)  # type: ignore[arg-type]


def test_other_origins_are_shut_out_unless_named(make_client: MakeClient) -> None:
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in make_client().options(CHAT, headers=headers).headers
    client = make_client(cors_origins=("https://page.example",), api_keys=("secret",))
    preflight = client.options(CHAT, headers={**headers, "Access-Control-Request-Headers": "authorization"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://page.example"
    # An error that a page cannot read would look to it like a network failure.
    refused = client.post(CHAT, json=BODY, headers={"Origin": "https://page.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://page.example"
    other = client.post(CHAT, json=BODY, headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example:8070", "Host": "evil.example:8070", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "http://["},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example:8070", "Sec-Fetch-Site": "same-origin"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "[evil.example"},
    ],
)
def test_without_a_key_pages_of_other_sites_are_refused(
    make_client: MakeClient, headers: dict[str, str]
) -> None:
    """Bodies without a type need no permission of ours, and a name that points here is no other origin."""
    client = make_client(cors_origins=("https://page.example",))
    for path, body in ((CHAT, BODY), ("/generate", {"inputs": "hi"}), ("/telechat/gptDialog/v4", {})):
        refused = client.post(path, json=body, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert client.get("/stopService", headers=headers).json()["error"]["code"] == "forbidden"
    assert client.get("/docs", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost:5173"},
        {"Origin": "http://[::1]:3000"},
        {"Origin": "https://page.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "chrome-extension://abcdef"},
        {"Sec-Fetch-Site": "none"},
        {"Host": "page.example"},
        {"Host": "127.0.0.1:8070"},
        {"Host": "[::1]:8070"},
        {"Host": "192.168.0.7"},
        {"Host": "box.local:8070"},
        {"Host": "telechat:8070"},
    ],
)
def test_without_a_key_programs_and_named_origins_are_let_in(
    make_client: MakeClient, headers: dict[str, str]
) -> None:
    client = make_client(cors_origins=("https://page.example",))
    assert client.post(CHAT, json=BODY, headers=headers).status_code == 200


def test_with_a_key_or_for_all_origins_do_not_count(make_client: MakeClient) -> None:
    headers = {"Origin": "https://evil.example", "Authorization": "Bearer secret"}
    for fields in (
        {"api_keys": ("secret",)},
        {"cors_origins": ("*",)},
        {"host": "0.0.0.0", "allow_anonymous": True},
    ):
        assert make_client(**fields).post(CHAT, json=BODY, headers=headers).status_code == 200


def test_models(client: TestClient, engine: FakeEngine) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert (card["id"], card["object"], card["owned_by"]) == ("fake", "model", "telechat")
    assert isinstance(card["created"], int)
    assert card["max_model_len"] == engine.llm.max_model_len
    assert card["default_sampling"]["repetition_penalty"] == 1.03
    assert card["default_sampling"]["temperature"] == 0
    assert client.get("/v1/models/fake").json() == card
    answer = client.get("/v1/models/other")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_the_served_name(make_client: MakeClient) -> None:
    client = make_client(served_model_name="org/my-model")
    assert client.get("/v1/models/org/my-model").json()["id"] == "org/my-model"
    assert client.post(CHAT, json={**BODY, "model": "org/my-model"}).json()["model"] == "org/my-model"
    assert client.post(CHAT, json={**BODY, "model": "fake"}).status_code == 404


def test_places_are_limited_and_given_back() -> None:
    admission = Admission(2)
    first, second = admission.take(), admission.take()
    with pytest.raises(ApiError) as caught:
        admission.take()
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    assert caught.value.headers["Retry-After"] == "1"
    second.close()
    second.close()
    assert admission.num_taken == 1
    first.close()
    admission.is_draining = True
    with pytest.raises(ApiError) as caught:
        admission.take()
    assert (caught.value.status, caught.value.code) == (503, "unavailable")


def test_every_answer_gives_its_place_back(engine: FakeEngine) -> None:
    admission = Admission(1)
    app = create_app(engine, ServeSettings(), admission=admission)
    client = TestClient(app, raise_server_exceptions=False)
    dialog = {"dialog": [{"role": "user", "content": "hi"}]}
    engine.scripts["fail"] = (ValueError("boom"),)
    for question in ("hi", "fail", "refuse me"):
        for streamed in (True, False):
            client.post(CHAT, json={"messages": [{"role": "user", "content": question}], "stream": streamed})
            assert admission.num_taken == 0
    for version in ("v2", "v4"):
        client.post(f"/telechat/gptDialog/{version}", json=dialog)
        assert admission.num_taken == 0
    place = admission.take()
    for path, body in ((CHAT, BODY), ("/telechat/gptDialog/v2", dialog)):
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    place.close()
    admission.is_draining = True
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    answer = client.post(CHAT, json=BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [(QueueFullError("full"), 429, "queue_full"), (EngineClosedError("closed"), 503, "unavailable")],
)
def test_what_the_engine_cannot_take(
    client: TestClient, engine: FakeEngine, refusal: Exception, status: int, code: str
) -> None:
    engine.refusal = refusal
    answer = client.post(CHAT, json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "retry-after" in answer.headers


def test_docs_need_no_other_host(client: TestClient) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    assert not re.findall(r"""(?:src|href)=["'](?!/openapi\.json)""", answer.text)
    for expected in (
        "/v1/chat/completions",
        "/telechat/gptDialog/v2",
        "repetition_penalty",
        "max_length",
        "curl",
    ):
        assert expected in answer.text


def test_openapi(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) >= {CHAT, "/v1/models", "/telechat/gptDialog/v2", "/telechat/gptDialog/v4"}
    names = set(document["components"]["schemas"])
    assert {"ChatRequest", "Message", "GptDialogRequest", "Error"} <= names
    references = set(re.findall(r"#/components/schemas/(\w+)", client.get("/openapi.json").text))
    assert references <= names
    assert "422" not in document["paths"][CHAT]["post"]["responses"]
