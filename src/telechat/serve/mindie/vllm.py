"""vLLM's older form: a body with `prompt`. Each answer is the prompt and its continuation.

A stream is the same JSON again and again with ever longer texts, each ended by a NUL byte.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from telechat.engine.outputs import Delta
from telechat.errors import TelechatError
from telechat.serve.connection import GeneratedResponse, run_while_connected
from telechat.serve.errors import ApiError, internal_error
from telechat.serve.mindie.answering import encode_prompt
from telechat.serve.mindie.fields import VllmRequest
from telechat.serve.mindie.refusals import refusal_body
from telechat.serve.mindie.sampling import from_vllm
from telechat.serve.service import Service

logger = logging.getLogger(__name__)

# Plain bytes, as vLLM's: neither lines nor events.
HEADERS = {
    "Content-Type": "application/octet-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class Texts:
    """The answers to one prompt as they grow.

    Args:
        prompt: what each answer begins with.
        keeps_stop: a stop string that ends an answer belongs to it.
    """

    def __init__(self, prompt: str, num_answers: int, *, keeps_stop: bool) -> None:
        self._texts = [prompt] * num_answers
        self._logprobs = [0.0] * num_answers
        self._lengths = [0] * num_answers
        self._keeps_stop = keeps_stop

    def push(self, delta: Delta) -> None:
        """Take what an answer gained."""
        self._texts[delta.index] += delta.text
        if self._keeps_stop and isinstance(delta.stop_reason, str):
            self._texts[delta.index] += delta.stop_reason
        self._logprobs[delta.index] += sum(entry.logprob for entry in delta.logprobs or ())
        self._lengths[delta.index] += len(delta.token_ids)

    def best(self, num_wanted: int) -> list[str]:
        """The likeliest per token, best first where there is a choice."""
        if num_wanted == len(self._texts):
            return list(self._texts)
        means = [total / max(length, 1) for total, length in zip(self._logprobs, self._lengths, strict=True)]
        order = sorted(range(len(means)), key=means.__getitem__, reverse=True)
        return [self._texts[index] for index in order[:num_wanted]]


async def answer_vllm(service: Service, request: Request, body: VllmRequest, *, stream: bool) -> Response:
    """The answer to a body with `prompt`.

    Raises:
        ApiError, TelechatError: it cannot be answered.
    """
    service.check_model(body.model)
    settings = service.settings
    params = from_vllm(body, settings.mindie, max_choices=settings.max_choices, stream=stream)
    with ExitStack() as stack:
        visit = service.admit(request)
        stack.callback(visit.close)
        ids = await encode_prompt(service, body.prompt)
        texts = Texts(body.prompt, params.n, keeps_stop=bool(body.include_stop_str_in_output))
        deltas = service.deltas(visit.stream(ids, params))
        if stream:
            chunks = _chunks(deltas, texts, params.n)
            return GeneratedResponse(chunks, headers=HEADERS, on_close=stack.pop_all().close)
        return await run_while_connected(request, _whole(deltas, texts, body.n or 1))


async def _whole(deltas: AsyncGenerator[Delta, None], texts: Texts, num_wanted: int) -> Response:
    async with aclosing(deltas):
        async for delta in deltas:
            texts.push(delta)
    return JSONResponse({"text": texts.best(num_wanted)})


async def _chunks(
    deltas: AsyncGenerator[Delta, None], texts: Texts, num_answers: int
) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(deltas):
            async for delta in deltas:
                texts.push(delta)
                yield _chunk({"text": texts.best(num_answers)})
    except (ApiError, TelechatError) as error:
        yield _chunk(refusal_body(error))
    except Exception:
        # The boundary of the process: the client must learn that the answer is not complete.
        logger.exception("a stream failed")
        yield _chunk(refusal_body(internal_error()))


def _chunk(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\0"
