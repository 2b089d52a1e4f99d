"""Checks of chat streams: the bytes, the events, and that they say what a whole answer says."""

from __future__ import annotations

import json
import re
from typing import Any

from telechat.conformance.api import Api, text_of
from telechat.conformance.basics import check_usage
from telechat.conformance.check import Check, SkippedError, expect, pick, shown

_EVENT = re.compile(rb"data: ?[^\n]*")
_PIECES_OF = 8


def _choices(events: list[Any]) -> list[Any]:
    return [choice for event in events for choice in pick(event, "choices")]


def stream_type(api: Api) -> None:
    kind = api.plain_stream.headers.get("content-type", "")
    expect(kind.startswith("text/event-stream"), f"Content-Type is {kind!r}")


def stream_not_cached(api: Api) -> None:
    control = api.plain_stream.headers.get("cache-control", "")
    expect("no-cache" in control or "no-store" in control, f"Cache-Control is {control!r}")


def stream_framing(api: Api) -> None:
    raw = api.plain_stream.raw
    expect(b"\r" not in raw, "lines end with \\r\\n; some clients split on \\n\\n only")
    expect(raw.endswith(b"\n\n"), "the stream does not end with an empty line")
    for block in raw[:-2].split(b"\n\n"):
        sound = _EVENT.fullmatch(block) is not None or block.startswith(b":")
        expect(sound, f"an event is not one data line: {shown(block.decode('utf-8', 'replace'))}")


def stream_done(api: Api) -> None:
    expect(api.plain_stream.is_done, "the last event is not data: [DONE]")


def stream_heading(api: Api) -> None:
    events = api.plain_stream.events
    expect(bool(events), "the stream has no events")
    for name in ("id", "created", "model"):
        values = {json.dumps(pick(event, name)) for event in events}
        expect(len(values) == 1, f"{name} changes within a stream: {shown(sorted(values))}")
    kinds = {pick(event, "object") for event in events}
    expect(kinds == {"chat.completion.chunk"}, f"object is {shown(sorted(map(str, kinds)))}")


def stream_first_role(api: Api) -> None:
    choices = _choices(api.plain_stream.events)
    expect(bool(choices), "the stream has no choices")
    role = pick(choices[0], "delta").get("role")
    expect(role == "assistant", f"the first delta has the role {shown(role)}")


def stream_finish(api: Api) -> None:
    choices = _choices(api.plain_stream.events)
    reasons = [choice.get("finish_reason") for choice in choices]
    given = [reason for reason in reasons if reason is not None]
    expect(len(given) == 1, f"finish reasons in the stream: {given}; there must be one")
    expect(reasons[-1] is not None, "text comes after the finish reason")
    whole = pick(api.plain, "choices", 0, "finish_reason")
    expect(given[0] == whole, f"finish_reason is {given[0]!r} in a stream and {whole!r} without")


def stream_text(api: Api) -> None:
    streamed = text_of(api.plain_stream.events)
    whole = pick(api.plain, "choices", 0, "message", "content")
    expect(streamed == whole, f"streamed {shown(streamed)}, whole {shown(whole)}")


def stream_pieces(api: Api) -> None:
    if pick(api.plain, "usage", "completion_tokens") < _PIECES_OF:
        raise SkippedError("the model's answer is too short to tell")
    pieces = [
        choice for choice in _choices(api.plain_stream.events) if choice.get("delta", {}).get("content")
    ]
    expect(len(pieces) > 1, "the whole answer comes in one piece")


def stream_characters(api: Api) -> None:
    try:
        text = api.plain_stream.raw.decode("utf-8")
    except UnicodeDecodeError as error:
        expect(False, f"the stream is not UTF-8 (byte {error.start})")
    whole = str(pick(api.plain, "choices", 0, "message", "content"))
    for choice in _choices(api.plain_stream.events):
        piece = choice.get("delta", {}).get("content") or ""
        halves = any("\ud800" <= character <= "\udfff" for character in piece)
        expect(not halves, f"a piece holds half a character: {piece!r}")
    extra = text.count("\ufffd") - whole.count("\ufffd")
    expect(extra <= 0, f"{extra} characters are broken between pieces")


def stream_usage(api: Api) -> None:
    stream = api.stream(stream_options={"include_usage": True})
    last = stream.events[-1]
    expect(pick(last, "choices") == [], "the last chunk has choices beside usage")
    check_usage(pick(last, "usage"))
    whole = pick(api.plain, "usage")
    for name in ("prompt_tokens", "completion_tokens"):
        same = last["usage"][name] == whole[name]
        expect(same, f"{name} is {last['usage'][name]} in a stream and {whole[name]} without")
    early = [event for event in stream.events[:-1] if event.get("usage") is not None]
    expect(not early, "chunks before the last one have usage")


def stream_no_usage(api: Api) -> None:
    events = api.plain_stream.events
    expect(all(pick(event, "choices") for event in events), "a chunk without choices comes unasked")
    expect(not any(event.get("usage") for event in events), "usage comes unasked")


def stream_n(api: Api) -> None:
    choices = _choices(api.stream(n=2, temperature=1).events)
    ended = sorted(choice["index"] for choice in choices if choice.get("finish_reason"))
    expect(ended == [0, 1], f"with n=2, answers {ended} come to an end")


def stream_logprobs(api: Api) -> None:
    choices = _choices(api.stream(logprobs=True, top_logprobs=1).events)
    entries = [entry for choice in choices for entry in (choice.get("logprobs") or {}).get("content") or ()]
    expected = pick(api.chat(logprobs=True, top_logprobs=1), "choices", 0, "logprobs", "content")
    tokens = [pick(entry, "token") for entry in entries]
    expect(tokens == [pick(entry, "token") for entry in expected], "logprobs differ from those of the whole")


def stream_refused(api: Api) -> None:
    answer = api.refused(stream=True, temperature="hot")
    expect(400 <= answer.status_code < 500, f"HTTP {answer.status_code}")
    kind = answer.headers.get("content-type", "")
    expect(kind.startswith("application/json"), f"a refused stream has Content-Type {kind!r}")


CHECKS = (
    Check("stream-type", "all clients", "the stream is not recognised", stream_type),
    Check("stream-not-cached", "gateways", "proxies keep streams", stream_not_cached),
    Check("stream-framing", "Open WebUI, Dify, gateways", "events are lost or joined", stream_framing),
    Check("stream-done", "openai-python, Dify", "clients wait for more, or report a cut", stream_done),
    Check(
        "stream-heading", "LangChain, gateways", "chunks of an answer are not put together", stream_heading
    ),
    Check("stream-first-role", "LangChain, LlamaIndex", "the message has no role", stream_first_role),
    Check("stream-finish", "all clients", "the end of an answer is not seen", stream_finish),
    Check("stream-text", "all clients", "streams say something else than whole answers", stream_text),
    Check("stream-pieces", "Open WebUI", "nothing is shown until the answer is over", stream_pieces),
    Check("stream-characters", "all clients", "Chinese text shows broken characters", stream_characters),
    Check("stream-usage", "gateways, LangChain", "streams cannot be billed", stream_usage),
    Check("stream-no-usage", "older clients", "a chunk without choices crashes them", stream_no_usage),
    Check("stream-n", "openai-python", "answers of a stream are lost", stream_n),
    Check("stream-logprobs", "openai-python", "logprobs of streams are lost", stream_logprobs),
    Check("stream-refused", "openai-python", "the reason of a refusal is not seen", stream_refused),
)
