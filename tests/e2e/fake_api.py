"""A stand-in for the API: streams prepared answers at a given rate, and fails in the ways an API can.

The last user message chooses the answer: "fake:NAME" picks a behaviour, "echo TEXT" is answered with TEXT,
anything else with `ANSWER`. Records what it was asked and how many streams are open, for the tests to see.
As a program it serves by itself: `python -m tests.e2e.fake_api PORT`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

MODEL = "fake-model"
ANSWER = """生抽和老抽都是**酱油**，主要区别如下：

| 项目 | 生抽 | 老抽 |
|:--|:--|:--|
| 颜色 | 浅，红褐色 | 深，棕黑色 |
| 味道 | 咸鲜 | 咸中带甜 |
| 用途 | 凉拌、调味 | 红烧、上色 |

1. 凉拌时用**生抽**；
2. 红烧时用**老抽**。

```python
def choose(dish: str) -> str:
    # 上色用老抽
    return "老抽" if dish == "红烧" else "生抽"
```

设鸡有 $x$ 只，则 $2x + 4(35 - x) = 94$，于是

$$
x = \\frac{4 \\times 35 - 94}{2} = 23
$$

更多内容见 https://example.com/soy 。
"""

ATTACKS = [
    "<script>window.attacked=1</script>",
    "<img src=x onerror=window.attacked=1>",
    "<svg onload=window.attacked=1>",
    "<iframe srcdoc='<script>parent.attacked=1</script>'></iframe>",
    "[link](javascript:window.attacked=1)",
    "[link](  JaVaScRiPt:window.attacked=1)",
    "[link](data:text/html,<script>window.attacked=1</script>)",
    "<javascript:window.attacked=1>",
    "![image](http://203.0.113.7/pixel.png)",
    "![image](javascript:window.attacked=1)",
    "<form action=http://203.0.113.7><input name=p></form>",
    "<div style='position:fixed;inset:0;background:red'>cover</div>",
    "<style>body{display:none}</style>",
    "<a href='javascript:window.attacked=1' onclick='window.attacked=1'>a</a>",
    '```"onmouseover=window.attacked=1\n</code></pre><script>window.attacked=1</script>\n```',
    "$\\text{</mtext><script>window.attacked=1</script><img src=x onerror=window.attacked=1>}$",
    "$\\href{javascript:window.attacked=1}{x}$",
    "<math><mi//xlink:href='data:x,<script>window.attacked=1</script>'>",
    "| <img src=x onerror=window.attacked=1> |\n|---|\n| <b onmouseover=window.attacked=1>x</b> |",
    '[x](http://a.b/"onmouseover="window.attacked=1)',
    "<base href=http://203.0.113.7/><meta http-equiv=refresh content='0;url=http://203.0.113.7'>",
    'http://203.0.113.7/"><script>window.attacked=1</script>',
]


@dataclass
class FakeApi:
    """The app plus what it saw."""

    pieces_per_second: float = 400.0
    long_bytes: int = 100_000
    num_models: int = 1
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_open: int = 0
    num_abandoned: int = 0
    tokenized: list[dict[str, Any]] = field(default_factory=list)
    num_scrapes: int = 0
    has_metrics: bool = True
    is_engine_up: bool = True
    num_added_tokens: int = 0

    def app(self, *, without: Sequence[str] = ()) -> Starlette:
        """The API; `without` names paths that it does not have."""
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/metrics", self._metrics),
        ]
        return Starlette(routes=[route for route in routes if route.path not in without])

    async def _tokenize(self, request: Request) -> Response:
        body = await request.json()
        self.tokenized.append(body)
        texts = prompt_tokens(body["messages"]) + ["<_bot>"] * self.num_added_tokens
        answer: dict[str, Any] = {"count": len(texts), "max_model_len": 2048, "tokens": token_ids(texts)}
        if body.get("return_token_strs"):
            answer["token_strs"] = texts
        return JSONResponse(answer)

    async def _metrics(self, request: Request) -> Response:
        self.num_scrapes += 1
        if not self.has_metrics:
            return Response("Not found", status_code=404)
        return Response(_metrics_text(self), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        names = [MODEL] + [f"{MODEL}-{number}" for number in range(2, self.num_models + 1)]
        data = [{"id": name, "object": "model", "owned_by": "test", "max_model_len": 2048} for name in names]
        return JSONResponse({"object": "list", "data": data})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        question = body["messages"][-1]["content"]
        behaviour = question.removeprefix("fake:") if question.startswith("fake:") else "answer"
        if behaviour == "refuse":
            return _error(429, "Too many requests; try again in 3 seconds.", "rate_limit_exceeded")
        if behaviour == "html-error":
            return Response("<h1>Bad gateway</h1>", status_code=503, media_type="text/html")
        num_prompt = len(prompt_tokens(body["messages"]))
        return StreamingResponse(
            self._stream(behaviour, question, num_prompt), media_type="text/event-stream"
        )

    async def _stream(self, behaviour: str, question: str, num_prompt: int) -> AsyncIterator[bytes]:
        self.num_open += 1
        try:
            async for event in self._events(behaviour, question, num_prompt):
                yield event
        except asyncio.CancelledError:
            self.num_abandoned += 1
            raise
        finally:
            self.num_open -= 1

    async def _events(self, behaviour: str, question: str, num_prompt: int) -> AsyncIterator[bytes]:
        yield _chunk({"role": "assistant", "content": ""})
        pieces = list(answer_pieces(behaviour, question, self.long_bytes))
        if behaviour == "count":
            pieces = [f"answer {len(self.requests)}"]
        began = time.perf_counter()
        for number, piece in enumerate(pieces):
            if behaviour == "silent":
                await asyncio.sleep(3600)
            rate = 10.0 if behaviour == "slow" else self.pieces_per_second
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            yield _chunk({"content": piece})
            if number >= 8 and behaviour == "exit":
                raise ConnectionResetError("leaving in the middle, as asked")
            if number >= 8 and behaviour == "no-done":
                return
            if number >= 8 and behaviour == "error":
                yield _event({"error": {"message": "The engine ran out of memory.", "type": "server_error"}})
                return
        reason = "length" if behaviour == "length" else "stop"
        yield _chunk({}, reason)
        usage = {
            "prompt_tokens": num_prompt,
            "completion_tokens": len(pieces),
            "total_tokens": num_prompt + len(pieces),
        }
        yield _event({"object": "chat.completion.chunk", "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


def prompt_tokens(messages: list[dict[str, Any]]) -> list[str]:
    """The prompt as this API's "model" sees it: role tokens, then two characters a token."""
    texts: list[str] = []
    for message in messages:
        role = {"user": "<_user>", "assistant": "<_bot>"}.get(message["role"], "<_system>")
        content = message["content"]
        texts += [role, *(content[start : start + 2] for start in range(0, len(content), 2))]
    return [*texts, "<_bot>"]


def token_ids(texts: list[str]) -> list[int]:
    """A number for each token, from its text."""
    return [sum(map(ord, text)) % 130_000 for text in texts]


def _metrics_text(api: FakeApi) -> str:
    """Figures under the names of the real API, growing with every reading."""
    number = api.num_scrapes
    lines = [
        "# HELP telechat_engine_running Answers being computed",
        "# TYPE telechat_engine_running gauge",
        'telechat_engine_running{replica="0"} 3.0',
        'telechat_engine_running{replica="1"} 4.0',
        'telechat_engine_waiting{replica="0"} 2.0',
        f'telechat_engine_up{{replica="0"}} {float(api.is_engine_up)}',
        'telechat_engine_cache_blocks{replica="0"} 200.0',
        'telechat_engine_cache_blocks_used{replica="0"} 50.0',
        f'telechat_engine_generated_tokens_total{{replica="0"}} {1000.0 * number}',
        f"telechat_requests_failed_total {float(number)}",
    ]
    for name, bound in (("time_to_first_token", 0.25), ("time_per_output_token", 0.02)):
        lines += [
            f'telechat_{name}_seconds_bucket{{le="{bound}"}} {10.0 * number}',
            f'telechat_{name}_seconds_bucket{{le="+Inf"}} {10.0 * number}',
            f"telechat_{name}_seconds_count {10.0 * number}",
        ]
    return "\n".join([*lines, ""])


def answer_pieces(behaviour: str, question: str = "", long_bytes: int = 100_000) -> Iterator[str]:
    """The answer in the pieces in which it is sent."""
    text = ANSWER
    if behaviour == "attack":
        text = "\n\n".join(ATTACKS)
    elif behaviour == "empty":
        text = ""
    elif behaviour == "separators":
        text = "one\u2028two\u0085three\u000bfour"
    elif behaviour == "long":
        text = (ANSWER + "\n") * (long_bytes // len(ANSWER.encode()) + 1)
    elif behaviour == "echo" or question.startswith("echo "):
        text = question.removeprefix("echo ")
    size = 40 if behaviour == "long" else 3
    for start in range(0, len(text), size):
        yield text[start : start + size]


def _event(payload: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(payload, ensure_ascii=False)}\n\n".encode()


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return _event({"id": "1", "object": "chat.completion.chunk", "model": MODEL, "choices": [choice]})


def _error(status: int, message: str, code: str) -> Response:
    body = {"error": {"message": message, "type": "rate_limit_error", "param": None, "code": code}}
    return JSONResponse(body, status_code=status, headers={"retry-after": "3"})


@contextmanager
def serve_in_thread(app: ASGIApp, *, port: int = 0) -> Iterator[str]:
    """Serve `app` on loopback in a thread; yields its address, stops the server at the end."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="critical", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the test server did not start")
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="tests.e2e.fake_api")
    parser.add_argument("port", type=int)
    parser.add_argument("--pieces-per-second", type=float, default=400.0)
    parser.add_argument("--long-bytes", type=int, default=100_000)
    args = parser.parse_args()
    api = FakeApi(pieces_per_second=args.pieces_per_second, long_bytes=args.long_bytes)
    uvicorn.run(api.app(), host="127.0.0.1", port=args.port, log_level="critical")


if __name__ == "__main__":
    main()
