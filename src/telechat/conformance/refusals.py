"""Checks of errors: status, shape and code, and that nothing odd in a body is the server's fault."""

from __future__ import annotations

import random
from typing import Any

import httpx

from telechat.conformance.api import QUESTION, Api, parsed
from telechat.conformance.check import Check, SkippedError, expect, pick, shown

CHAT = "/v1/chat/completions"


def check_error(answer: httpx.Response, *statuses: int) -> Any:
    """The `error` of an answer with one of these statuses, in OpenAI's shape."""
    expect(answer.status_code in statuses, f"HTTP {answer.status_code}: {shown(answer.text)}")
    error = pick(parsed(answer), "error")
    for name, kinds in (("message", str), ("type", str), ("param", str | None), ("code", str | int | None)):
        value = pick(error, name)
        expect(isinstance(value, kinds), f"error.{name} is {shown(value)}")
    expect(bool(error["message"]), "error.message is empty")
    return error


def error_bad_field(api: Api) -> None:
    error = check_error(api.refused(temperature="hot"), 400)
    named = "temperature" in f"{error['param']} {error['message']}"
    expect(named, f"the error does not name the field: {shown(error)}")


def error_missing_messages(api: Api) -> None:
    check_error(api.refused(messages=...), 400)


def error_empty_messages(api: Api) -> None:
    check_error(api.refused(messages=[]), 400)


def error_bad_role(api: Api) -> None:
    check_error(api.refused(messages=[{"role": "nobody", "content": QUESTION}]), 400)


def error_bad_limits(api: Api) -> None:
    beyond: dict[str, Any] = {"max_tokens": -1, "top_p": 7, "n": 0, "temperature": -1}
    for name, value in beyond.items():
        check_error(api.refused(**{name: value}), 400)


def error_bad_json(api: Api) -> None:
    for content in (b"{", b"", b"[]", b'{"model": NaN}', b"[" * 100_000):
        check_error(api.post(CHAT, content=content), 400)


def error_bad_text(api: Api) -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}'
    check_error(api.post(CHAT, content=body), 400)


def error_context_length(api: Api) -> None:
    limit = api.card.get("max_model_len") or api.card.get("context_length")
    if not isinstance(limit, int):
        raise SkippedError("the model list does not say how long the context is")
    words = random.Random(0).sample(range(10_000, 10_000_000), limit + 1000)
    text = " ".join(str(number) for number in words)
    answer = api.refused(messages=[{"role": "user", "content": text}])
    if answer.status_code == 413:
        raise SkippedError("a prompt beyond the context is too large a body for this server")
    error = check_error(answer, 400)
    expect(error["code"] == "context_length_exceeded", f"code is {shown(error['code'])}")


def error_unknown_model(api: Api) -> None:
    error = check_error(api.refused(model="no-such-model-anywhere"), 404)
    expect(error["code"] == "model_not_found", f"code is {shown(error['code'])}")


def error_unknown_model_card(api: Api) -> None:
    check_error(api.get("/v1/models/no-such-model-anywhere"), 404)


def error_wrong_key(api: Api) -> None:
    if not api.key:
        raise SkippedError("the server was given without a key")
    for headers in ({"Authorization": "Bearer not-the-key"}, {}):
        error = check_error(api.post(CHAT, api.body(), headers=headers), 401)
        expect(error["code"] == "invalid_api_key", f"code is {shown(error['code'])}")


def error_unknown_route(api: Api) -> None:
    check_error(api.get("/v1/no-such-route"), 404)


def still_serves(api: Api) -> None:
    for content in (b"{", b'{"messages": 3}', b"\xff" * 1000):
        api.post(CHAT, content=content)
    api.chat()


CHECKS = (
    Check("error-bad-field", "openai-python, Dify", "users do not learn what to correct", error_bad_field),
    Check(
        "error-missing-messages",
        "openai-python",
        "a mistake looks like a broken server",
        error_missing_messages,
    ),
    Check(
        "error-empty-messages", "openai-python", "a mistake looks like a broken server", error_empty_messages
    ),
    Check("error-bad-role", "LangChain", "a misspelled role is passed to the model", error_bad_role),
    Check("error-bad-limits", "gateways", "values out of range are used", error_bad_limits),
    Check("error-bad-json", "gateways", "bad bodies are tried again and again", error_bad_json),
    Check("error-bad-text", "gateways", "bad bodies are tried again and again", error_bad_text),
    Check(
        "error-context-length",
        "LangChain, LlamaIndex, Dify",
        "a prompt is cut silently, or its length not named",
        error_context_length,
    ),
    Check("error-unknown-model", "gateways, Open WebUI", "another model answers", error_unknown_model),
    Check("error-unknown-model-card", "openai-python", "a missing model is found", error_unknown_model_card),
    Check("error-wrong-key", "openai-python, gateways", "keys are not asked for", error_wrong_key),
    Check("error-unknown-route", "openai-python", "errors cannot be read", error_unknown_route),
    Check("still-serves", "all clients", "one bad request ends the service", still_serves),
)
