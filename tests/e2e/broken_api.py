"""A small server that speaks OpenAI's protocol well, or with one fault of choice.

Its model has one answer, a character a token, and calls every tool with the same arguments. `FAULTS` names
what can be wrong and the check of `telechat api-check` that must find it.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODEL, KEY, CONTEXT = "small", "sk-right", 600
ANSWER = "生抽由大豆、小麦、盐和水酿成，味道咸鲜，颜色比老抽浅得多，常用来凉拌。"
ARGUMENTS = '{"city": "Beijing", "today": true}'
ROLES = ("system", "developer", "user", "assistant", "tool")

FAULTS = {
    "models without created": "models-list",
    "usage does not add up": "chat-usage",
    "always streams": "chat-not-streamed",
    "one id for all": "chat-new-ids",
    "another model's name": "chat-model",
    "parts as text": "chat-content-parts",
    "unknown fields refused": "chat-unknown-fields",
    "null refused": "chat-null-fields",
    "no max_completion_tokens": "chat-max-completion-tokens",
    "a cut answer ends with stop": "chat-length-reason",
    "stop ignored": "chat-stop",
    "n ignored": "chat-n",
    "no developer": "chat-developer-role",
    "last message only": "chat-history",
    "no logprobs": "chat-logprobs",
    "plain text streams": "stream-type",
    "\\r\\n in streams": "stream-framing",
    "no [DONE]": "stream-done",
    "ids change in streams": "stream-heading",
    "no role": "stream-first-role",
    "no finish reason in streams": "stream-finish",
    "a piece is sent twice": "stream-text",
    "streams in one piece": "stream-pieces",
    "half characters": "stream-characters",
    "no usage in streams": "stream-usage",
    "usage unasked": "stream-no-usage",
    "refusals as events": "stream-refused",
    "422 with detail": "error-bad-field",
    "500 for bad JSON": "error-bad-json",
    "bad UTF-8 taken": "error-bad-text",
    "long prompts cut": "error-context-length",
    "any model": "error-unknown-model",
    "any key": "error-wrong-key",
    "any role": "error-bad-role",
    "HTML for unknown routes": "error-unknown-route",
    "tools never called": "tools-required",
    "arguments as object": "tools-named",
    "a tool although none": "tools-none",
    "broken arguments in streams": "tools-stream",
    "no tool results": "tools-results",
    "schema ignored": "json-schema",
    "bad schema taken": "json-bad-schema",
    "first prompt only": "completions-list",
    "embeddings never base64": "embeddings-base64",
    "embeddings without index": "embeddings-list",
    "responses without usage": "responses-shape",
}


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}


class BrokenApi:
    """The server. `fault` is one of FAULTS, or None."""

    def __init__(self, fault: str | None = None) -> None:
        self.fault = fault
        self.count = 0

    def app(self) -> Starlette:
        async def missing(request: Request, error: Exception) -> Response:
            if self.fault == "HTML for unknown routes":
                return Response("<h1>Not found</h1>", 404, media_type="text/html")
            return self._refusal(RefusedError(404, "There is no such route."))

        return Starlette(
            routes=[
                Route("/v1/models", self._route(self._models)),
                Route("/v1/models/{name}", self._route(self._model)),
                Route("/v1/chat/completions", self._route(self._chat), methods=["POST"]),
                Route("/v1/completions", self._route(self._complete), methods=["POST"]),
                Route("/v1/embeddings", self._route(self._embed), methods=["POST"]),
                Route("/v1/responses", self._route(self._respond), methods=["POST"]),
            ],
            exception_handlers={404: missing},
        )

    def _route(self, answer: Any) -> Any:
        async def handle(request: Request) -> Response:
            body: Any = {}
            try:
                if request.headers.get("authorization") != f"Bearer {KEY}" and self.fault != "any key":
                    raise RefusedError(401, "Wrong key.", code="invalid_api_key")
                if request.method == "POST":
                    body = self._read(await request.body())
                response: Response = answer(request, body)
            except RefusedError as error:
                return self._refusal(error, stream=isinstance(body, dict) and bool(body.get("stream")))
            return response

        return handle

    def _refusal(self, error: RefusedError, *, stream: bool = False) -> Response:
        if stream and self.fault == "refusals as events":
            event = f"data: {json.dumps({'error': error.error})}\n\n"
            return Response(event, media_type="text/event-stream")
        if error.status == 400 and self.fault == "422 with detail":
            return JSONResponse({"detail": [{"msg": "wrong"}]}, 422)
        return JSONResponse({"error": error.error}, error.status)

    def _read(self, raw: bytes) -> Any:
        errors = "replace" if self.fault == "bad UTF-8 taken" else "strict"
        try:
            body = json.loads(raw.decode("utf-8", errors), parse_constant=lambda name: 1 / 0)
        except (ValueError, RecursionError, ZeroDivisionError):
            status = 500 if self.fault == "500 for bad JSON" else 400
            raise RefusedError(status, "The body is not JSON.") from None
        if not isinstance(body, dict):
            raise RefusedError(400, "The body is no object.")
        if body.get("model") not in (MODEL, None) and self.fault not in ("any model", "bad UTF-8 taken"):
            raise RefusedError(404, "There is no such model.", param="model", code="model_not_found")
        return body

    def _models(self, request: Request, body: Any) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    def _card(self) -> dict[str, Any]:
        card = {"id": MODEL, "object": "model", "created": 1, "owned_by": "us", "max_model_len": CONTEXT}
        if self.fault == "models without created":
            del card["created"]
        return card

    def _model(self, request: Request, body: Any) -> Response:
        if request.path_params["name"] != MODEL:
            raise RefusedError(404, "There is no such model.", code="model_not_found")
        return JSONResponse(self._card())

    def _chat(self, request: Request, body: dict[str, Any]) -> Response:
        if self.fault == "null refused" and None in body.values():
            raise RefusedError(400, "A field is null.")
        body = {name: value for name, value in body.items() if value is not None}
        self._check_fields(body)
        num_prompt_tokens = self._check_messages(body.get("messages"))
        message, reason, num_tokens = self._answer(body)
        numbers = range(1 if self.fault == "n ignored" else body.get("n", 1))
        usage = {"prompt_tokens": num_prompt_tokens, "completion_tokens": num_tokens * len(numbers)}
        usage["total_tokens"] = sum(usage.values()) + (self.fault == "usage does not add up")
        if body.get("stream") or self.fault == "always streams":
            wants_usage = body.get("stream_options", {}).get("include_usage")
            events = self._events(message, reason, numbers, usage if wants_usage else None, body)
            kind = "text/plain" if self.fault == "plain text streams" else "text/event-stream"
            return StreamingResponse(events, media_type=kind, headers={"Cache-Control": "no-cache"})
        choices = [
            {
                "index": number,
                "message": message,
                "logprobs": self._logprobs(message["content"] or "", body),
                "finish_reason": reason,
            }
            for number in numbers
        ]
        return JSONResponse({**self._heading("chat.completion"), "choices": choices, "usage": usage})

    def _check_fields(self, body: dict[str, Any]) -> None:
        if self.fault == "unknown fields refused" and "x_not_a_field" in body:
            raise RefusedError(400, "x_not_a_field is unknown.")
        for name, low, high in (("temperature", 0, 2), ("top_p", 0, 1), ("max_tokens", 1, 1e9), ("n", 1, 9)):
            value = body.get(name, low)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise RefusedError(400, f"{name} is wrong.", param=name)
        tools = body.get("tools", [])
        names = [tool.get("function", {}).get("name") for tool in tools]
        choice = body.get("tool_choice")
        if None in names or (isinstance(choice, dict) and choice["function"]["name"] not in names):
            raise RefusedError(400, "A tool is wrong.", param="tools")
        form = body.get("response_format", {"type": "text"})
        kind = form.get("json_schema", {}).get("schema", {}).get("type", "object")
        known = form["type"] in ("text", "json_object", "json_schema") and kind == "object"
        if not known and self.fault != "bad schema taken":
            raise RefusedError(400, "The format is wrong.", param="response_format")

    def _check_messages(self, messages: Any) -> int:
        if not isinstance(messages, list) or not messages:
            raise RefusedError(400, "messages is missing.", param="messages")
        if self.fault == "last message only":
            messages = messages[-1:]
        total = 0
        for message in messages:
            role, content = message.get("role"), message.get("content") or ""
            unknown = role not in ROLES and self.fault != "any role"
            if unknown or (role == "developer" and self.fault == "no developer"):
                raise RefusedError(400, f"The role {role} is unknown.", param="messages")
            if role == "tool" and self.fault == "no tool results":
                raise RefusedError(400, "Results are not taken.", param="messages")
            if isinstance(content, list) and self.fault != "parts as text":
                content = "".join(part["text"] for part in content)
            total += len(str(content)) + 1
        if total > CONTEXT and self.fault != "long prompts cut":
            message = "The prompt is too long."
            raise RefusedError(400, message, param="messages", code="context_length_exceeded")
        return min(total, CONTEXT)

    def _answer(self, body: dict[str, Any]) -> tuple[dict[str, Any], str, int]:
        choice = body.get("tool_choice", "auto")
        forced = choice == "required" or isinstance(choice, dict)
        if body.get("tools") and self._calls(choice, forced=forced):
            name = (
                choice["function"]["name"]
                if isinstance(choice, dict)
                else body["tools"][0]["function"]["name"]
            )
            arguments: Any = ARGUMENTS
            if self.fault == "arguments as object":
                arguments = json.loads(ARGUMENTS)
            function = {"name": name, "arguments": arguments}
            call = {"id": "call_1", "type": "function", "function": function}
            return {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls", 9
        if body.get("response_format", {"type": "text"})["type"] != "text" and self.fault != "schema ignored":
            return {"role": "assistant", "content": ARGUMENTS}, "stop", len(ARGUMENTS)
        text, reason = ANSWER, "stop"
        limit = body.get("max_completion_tokens", body.get("max_tokens", CONTEXT))
        if self.fault == "no max_completion_tokens":
            limit = body.get("max_tokens", CONTEXT)
        stops = body.get("stop", [])
        for stop in () if self.fault == "stop ignored" else [stops] if isinstance(stops, str) else stops:
            text = text.partition(stop)[0]
        if len(text) > limit:
            text, reason = text[:limit], "stop" if self.fault == "a cut answer ends with stop" else "length"
        return {"role": "assistant", "content": text}, reason, len(text)

    def _calls(self, choice: Any, *, forced: bool) -> bool:
        if self.fault == "tools never called":
            return False
        return forced or (choice == "none" and self.fault == "a tool although none")

    def _logprobs(self, text: str, body: dict[str, Any]) -> Any:
        if not body.get("logprobs") or self.fault == "no logprobs":
            return None
        entry = {"logprob": -0.5, "bytes": None}
        top = [{"token": "x", **entry}] * body.get("top_logprobs", 0)
        return {"content": [{"token": one, **entry, "top_logprobs": top} for one in text]}

    def _heading(self, kind: str) -> dict[str, Any]:
        self.count += 1
        name = "other" if self.fault == "another model's name" else MODEL
        number = 0 if self.fault == "one id for all" else self.count
        return {"id": f"chatcmpl-{number}", "object": kind, "created": 1, "model": name}

    def _events(
        self, message: Any, reason: str, numbers: range, usage: Any, body: dict[str, Any]
    ) -> Iterator[bytes]:
        heading = self._heading("chat.completion.chunk")
        end = b"\r\n\r\n" if self.fault == "\\r\\n in streams" else b"\n\n"

        def event(fields: dict[str, Any]) -> bytes:
            nonlocal heading
            if self.fault == "ids change in streams":
                heading = self._heading("chat.completion.chunk")
            return b"data: " + json.dumps({**heading, **fields}, ensure_ascii=False).encode() + end

        for number in numbers:
            for delta, logprobs in self._deltas(message, body):
                piece = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": None}
                yield event({"choices": [piece]})
            if self.fault != "no finish reason in streams":
                yield event({"choices": [{"index": number, "delta": {}, "finish_reason": reason}]})
        if usage is not None and self.fault != "no usage in streams":
            yield event({"choices": [], "usage": usage})
        elif self.fault == "usage unasked":
            yield event({"choices": [], "usage": {"prompt_tokens": 1}})
        if self.fault != "no [DONE]":
            yield b"data: [DONE]" + end

    def _deltas(self, message: Any, body: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
        yield {"content": ""} if self.fault == "no role" else {"role": "assistant", "content": ""}, None
        for number, call in enumerate(message.get("tool_calls", ())):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            head = {**call, "index": number, "function": {"name": name, "arguments": ""}}
            yield {"tool_calls": [head]}, None
            cut = 3 if self.fault == "broken arguments in streams" else 0
            for piece in (arguments[:9], arguments[9 + cut :]):
                yield {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}, None
        text = message["content"] or ""
        size = len(text) if self.fault == "streams in one piece" else 2
        for start in range(0, len(text), max(size, 1)):
            piece = text[start : start + size]
            yield (
                {"content": "\ufffd" + piece[1:] if self.fault == "half characters" else piece},
                self._logprobs(piece, body),
            )
            if start == 0 and self.fault == "a piece is sent twice":
                yield {"content": piece}, None

    def _complete(self, request: Request, body: dict[str, Any]) -> Response:
        prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
        if self.fault == "first prompt only":
            prompts = prompts[:1]
        text = ANSWER[: body["max_tokens"]]
        choices = [
            {"index": index, "text": (prompt if body.get("echo") else "") + text, "finish_reason": "length"}
            for index, prompt in enumerate(prompts)
        ]
        heading = self._heading("text_completion")
        if body.get("stream"):
            event = json.dumps({**heading, "choices": choices})
            return Response(f"data: {event}\n\ndata: [DONE]\n\n", media_type="text/event-stream")
        usage = {"prompt_tokens": 3, "completion_tokens": len(text), "total_tokens": 3 + len(text)}
        return JSONResponse({**heading, "choices": choices, "usage": usage})

    def _embed(self, request: Request, body: dict[str, Any]) -> Response:
        vector: Any = [0.5, -0.25, 0.125]
        if body.get("encoding_format") == "base64" and self.fault != "embeddings never base64":
            vector = base64.b64encode(struct.pack("<3f", *vector)).decode()
        count = 1 if isinstance(body["input"], str) else len(body["input"])
        numbers = [0] * count if self.fault == "embeddings without index" else range(count)
        data = [{"object": "embedding", "index": index, "embedding": vector} for index in numbers]
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        return JSONResponse({"object": "list", "data": data, "model": MODEL, "usage": usage})

    def _respond(self, request: Request, body: dict[str, Any]) -> Response:
        text = ANSWER[: body["max_output_tokens"]]
        content = [{"type": "output_text", "text": text, "annotations": []}]
        output = [{"type": "message", "id": "msg_1", "role": "assistant", "content": content}]
        usage = {"input_tokens": 3, "output_tokens": len(text), "total_tokens": 3 + len(text)}
        answer = {"id": "resp_1", "object": "response", "status": "incomplete", "output": output}
        if self.fault != "responses without usage":
            answer["usage"] = usage
        if not body.get("stream"):
            return JSONResponse(answer)
        events: list[dict[str, Any]] = [
            {"type": "response.created"},
            {"type": "response.output_text.delta", "delta": text},
            {"type": "response.incomplete", "response": answer},
        ]
        lines = [
            f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': number})}\n\n"
            for number, event in enumerate(events)
        ]
        return Response("".join(lines), media_type="text/event-stream")
