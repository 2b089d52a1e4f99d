"""The page process over HTTP: its files, headers, refusals, and the way to the API and back."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.fake_api import ANSWER, MODEL, FakeApi, serve_in_thread

from telechat.serve.page.app import MAX_TEXTS, create_page_app
from telechat.serve.page.events import EventParser
from telechat.serve.page.proxy import MAX_REQUEST_BYTES
from telechat.serve.page.rendering import render_blocks
from telechat.serve.page.security import SECURITY_HEADERS
from telechat.serve.page.votes import VoteFolder

KEY = "secret-key"


@pytest.fixture(scope="module")
def api() -> FakeApi:
    return FakeApi(pieces_per_second=2000)


@pytest.fixture(scope="module")
def page_url(api: FakeApi) -> Iterator[str]:
    with (
        serve_in_thread(api.app()) as api_url,
        serve_in_thread(create_page_app(api_url, api_key=KEY)) as url,
    ):
        yield url


@pytest.fixture
def client(page_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=page_url, trust_env=False, timeout=20) as client:
        yield client


def _ask(client: httpx.Client, question: str) -> list[Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200
    events = EventParser().feed(response.content)
    return [event if event == "[DONE]" else json.loads(event) for event in events]


def _text(frames: list[Any]) -> str:
    return "".join(frame["choices"][0]["delta"]["content"] for frame in frames if "choices" in frame)


def test_an_answer_carries_text_blocks_figures_and_usage(client: httpx.Client, api: FakeApi) -> None:
    *frames, done = _ask(client, "生抽与老抽的区别？")
    assert done == "[DONE]"
    assert _text(frames) == ANSWER
    assert [html for frame in frames for html in frame["page"]["settled"]] == render_blocks(ANSWER)
    last = frames[-1]
    assert last["page"]["tail"] == ""
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["completion_tokens"] == last["page"]["num_pieces"]
    assert last["page"]["writing_seconds"] > 0
    assert api.requests[-1]["stream"] is True
    assert api.requests[-1]["stream_options"] == {"include_usage": True}


def test_frames_come_at_most_ten_times_a_second(client: httpx.Client, api: FakeApi) -> None:
    api.pieces_per_second = 200
    began = time.monotonic()
    frames = _ask(client, "生抽与老抽的区别？")
    assert 3 <= len(frames) <= (time.monotonic() - began) * 10 + 4
    api.pieces_per_second = 2000


def test_the_key_is_added_here_and_never_shown(client: httpx.Client, api: FakeApi) -> None:
    _ask(client, "echo hi")
    assert api.headers[-1]["authorization"] == f"Bearer {KEY}"
    for path in ("/", "/static/main.js", "/v1/models", "/health"):
        response = client.get(path)
        assert KEY not in response.text + str(response.headers)


def test_unicode_line_separators_do_not_cut_events(client: httpx.Client) -> None:
    *frames, done = _ask(client, "fake:separators")
    assert (_text(frames), done) == ("one\u2028two\u0085three\u000bfour", "[DONE]")


def test_an_error_in_the_stream_is_passed_on_after_the_text(client: httpx.Client) -> None:
    *frames, error = _ask(client, "fake:error")
    assert error["error"]["message"] == "The engine ran out of memory."
    assert ANSWER.startswith(_text(frames)) and _text(frames)


@pytest.mark.parametrize("behaviour", ["exit", "no-done"])
def test_a_stream_that_ends_early_has_no_done(client: httpx.Client, behaviour: str) -> None:
    frames = _ask(client, f"fake:{behaviour}")
    assert "[DONE]" not in frames
    assert ANSWER.startswith(_text(frames)) and _text(frames)
    assert frames[-1]["page"]["tail"] == ""


def test_a_refusal_keeps_status_message_and_retry_header(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "fake:refuse"}]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert response.headers["retry-after"] == "3"


def test_an_error_page_becomes_an_error_object(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "fake:html-error"}]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 503
    assert "503" in response.json()["error"]["message"]


def test_api_down_is_502_with_an_error_object() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        page = create_page_app(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with serve_in_thread(page) as url, httpx.Client(base_url=url, trust_env=False, timeout=20) as client:
            asked = client.post("/v1/chat/completions", json={"messages": []})
            for response in (asked, client.get("/v1/models")):
                assert response.status_code == 502
                assert response.json()["error"]["code"] == "api_unreachable"


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize("question", ["fake:slow", "fake:silent"])
def test_leaving_closes_the_request_to_the_api(page_url: str, api: FakeApi, question: str) -> None:
    abandoned = api.num_abandoned
    body = {"messages": [{"role": "user", "content": question}]}
    with (
        httpx.Client(base_url=page_url, trust_env=False, timeout=20) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        if question == "fake:slow":
            next(response.iter_bytes())
        else:
            _wait_until(lambda: api.num_open > 0)
    _wait_until(lambda: api.num_open == 0)
    assert api.num_abandoned == abandoned + 1


def test_many_streams_at_once_all_arrive_whole(client: httpx.Client) -> None:
    answers: list[str] = []

    def ask(number: int) -> None:
        with httpx.Client(base_url=client.base_url, trust_env=False, timeout=60) as own:
            answers.append(_text(_ask(own, f"echo number {number} " + "word " * 50)[:-1]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(f"number {number} " + "word " * 50 for number in range(20))


def test_the_proxy_settings_of_the_environment_are_not_used(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://203.0.113.1:9")
    with serve_in_thread(FakeApi().app()) as api_url, serve_in_thread(create_page_app(api_url)) as url:
        assert httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]["id"] == MODEL


@pytest.mark.parametrize(
    "path", ["/", "/static/main.js", "/health", "/v1/models", "/nowhere", "/static/../app.py"]
)
def test_every_response_has_the_security_headers(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert {name: headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "unsafe" not in headers["content-security-policy"]


def test_refusals_have_the_security_headers_too(client: httpx.Client) -> None:
    headers = client.get("/", headers={"host": "evil.example"}).headers
    assert headers["content-security-policy"] == SECURITY_HEADERS["content-security-policy"]


def test_files_have_their_media_type_and_are_not_sent_twice(client: httpx.Client) -> None:
    kinds = {"/": "text/html", "/static/main.js": "text/javascript", "/static/layout.css": "text/css"}
    for path, kind in kinds.items():
        first = client.get(path)
        assert first.headers["content-type"].startswith(kind)
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_only_the_fixed_paths_are_served(client: httpx.Client) -> None:
    for path in ("/static/", "/static/app.py", "/static/%2e%2e/app.py", "/v1/completions", "/docs"):
        assert client.get(path).status_code == 404
    assert client.get("/v1/chat/completions").status_code == 405


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8501", "localhost.evil.example", "", "[::2]:80"]
)
def test_other_host_names_are_refused(client: httpx.Client, host: str) -> None:
    response = client.get("/", headers={"host": host})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8501", "LOCALHOST"])
def test_loopback_names_are_served(client: httpx.Client, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


def test_hosts_can_be_named_or_left_unchecked() -> None:
    for allowed, host, status in ((["chat.example"], "chat.example:80", 200), (["*"], "any.example", 200)):
        with serve_in_thread(create_page_app("http://127.0.0.1:9", allowed_hosts=allowed)) as url:
            assert httpx.get(url, headers={"host": host}, trust_env=False).status_code == status


def basic(user: str, password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_a_public_page_asks_for_the_key() -> None:
    with (
        serve_in_thread(create_page_app("http://127.0.0.1:9", access_key="sk-a:b")) as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        bad = (
            {},
            basic("me", "wrong"),
            basic("sk-a:b", ""),
            {"authorization": "Basic %"},
            basic("sk-a", "b"),
        )
        for headers in (*bad, {"authorization": "Bearer sk-a:b"}):
            for path in ("/", "/static/main.js", "/v1/models"):
                refused = client.get(path, headers=headers)
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"].startswith("Basic ")
                assert refused.headers["content-security-policy"]
        for user in ("", "me", "李"):
            assert client.get("/", headers=basic(user, "sk-a:b")).status_code == 200
        assert client.get("/health").status_code == 200


def test_other_origins_are_refused(client: httpx.Client) -> None:
    own = f"http://{client.base_url.netloc.decode()}"
    assert client.post("/render", json={"texts": []}, headers={"origin": own}).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        refused = client.post("/render", json={"texts": []}, headers={"origin": origin})
        assert refused.status_code == 403


def test_what_the_browser_says_about_the_origin_counts(client: httpx.Client) -> None:
    for relation, status in (("same-origin", 200), ("same-site", 403), ("cross-site", 403)):
        headers = {"origin": "https://chat.example", "sec-fetch-site": relation}
        assert client.post("/render", json={"texts": []}, headers=headers).status_code == status


def test_a_link_from_another_site_may_open_the_page(client: httpx.Client) -> None:
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b" " * (MAX_REQUEST_BYTES + 1), "application/json", 413),
    ],
)
@pytest.mark.parametrize("path", ["/render", "/tokenize", "/v1/chat/completions"])
def test_bodies_that_are_not_json_objects_are_refused(
    client: httpx.Client, path: str, content: bytes, media_type: str, status: int
) -> None:
    response = client.post(path, content=content, headers={"content-type": media_type})
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_half_a_surrogate_pair_reaches_the_api(client: httpx.Client) -> None:
    body = b'{"messages": [{"role": "user", "content": "echo a\\ud800b"}]}'
    headers = {"content-type": "application/json"}
    assert client.post("/v1/chat/completions", content=body, headers=headers).status_code == 200


def test_stored_texts_are_rendered_in_order(client: httpx.Client) -> None:
    response = client.post("/render", json={"texts": ["# a\n\nb", "<script>", ""]})
    assert response.json() == {"blocks": [["<h3>a</h3>\n", "<p>b</p>\n"], ["<p>&lt;script&gt;</p>\n"], []]}


@pytest.mark.parametrize("texts", [None, "a", [1], ["a"] * (MAX_TEXTS + 1)])
def test_texts_of_the_wrong_kind_are_refused(client: httpx.Client, texts: object) -> None:
    assert client.post("/render", json={"texts": texts}).status_code == 400


VOTE = {
    "id": "a" * 32,
    "vote": "up",
    "model": MODEL,
    "messages": [{"role": "user", "content": "echo hi"}],
    "answer": "hi",
}


def test_votes_are_kept_where_a_folder_was_named(tmp_path: Path, client: httpx.Client) -> None:
    assert client.get("/about").json() == {"feedback": False}
    assert client.post("/feedback", json=VOTE).status_code == 404
    app = create_page_app("http://127.0.0.1:9", feedback_folder=tmp_path / "votes")
    with serve_in_thread(app) as url, httpx.Client(base_url=url, trust_env=False) as own:
        assert own.get("/about").json() == {"feedback": True}
        assert own.post("/feedback", json=VOTE).json() == {"vote": "up"}
        row = json.loads((tmp_path / "votes" / "votes.jsonl").read_text(encoding="utf-8"))
        assert (row["label"], row["prompt"]) == (True, VOTE["messages"])
        refused = own.post("/feedback", json={**VOTE, "vote": "maybe"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_vote")
        assert own.post("/feedback", json={**VOTE, "vote": None}).status_code == 200
        assert (tmp_path / "votes" / "votes.jsonl").read_bytes() == b""


def test_a_vote_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    app = create_page_app("http://127.0.0.1:9", feedback_folder=tmp_path)
    monkeypatch.setattr(VoteFolder, "record", full)
    with serve_in_thread(app) as url:
        refused = httpx.post(f"{url}/feedback", json=VOTE, trust_env=False)
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "vote_not_kept")


def test_prompt_tokens_and_load_come_from_the_api(client: httpx.Client, api: FakeApi) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "你好"}], "return_token_strs": True}
    answer = client.post("/tokenize", json=body).json()
    assert api.tokenized[-1] == body
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    load = client.get("/load")
    assert load.headers["content-type"].startswith("text/plain")
    assert "# TYPE" in load.text


def test_tokens_and_load_of_an_api_that_is_down_are_502() -> None:
    with serve_in_thread(create_page_app("http://127.0.0.1:9")) as url:
        for response in (
            httpx.post(f"{url}/tokenize", json={}, trust_env=False),
            httpx.get(f"{url}/load", trust_env=False),
        ):
            assert response.status_code == 502
            assert response.json()["error"]["code"] == "api_unreachable"
