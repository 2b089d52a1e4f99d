"""A request under way: its prompts with the engine, the answers read, tokens counted, tool calls taken out.

What all generating routes share. Knows neither how a request was written nor how its answer will be.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from telechat.engine.outputs import Delta, TokenLogprob
from telechat.engine.sampling_params import SamplingParams
from telechat.errors import ContextLengthError, PromptError
from telechat.serve.contract import DeltaStream
from telechat.serve.errors import ApiError, bad_field
from telechat.serve.openai.tool_parser import CallPiece, TextPiece, ToolCallParser
from telechat.serve.openai.tools import ToolPlan
from telechat.serve.service import Service
from telechat.serve.visit import Visit


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a request wants of the engine.

    Attributes:
        prompts: token ids of each prompt; `params.n` answers to every one.
        params: how to answer.
        tools: functions the answers may call.
        field: where the request has its prompt, for errors.
        adapter: the adapter to answer with.
    """

    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    tools: ToolPlan | None = None
    field: str = "messages"
    adapter: str | None = None

    @property
    def num_answers(self) -> int:
        """Answers to all prompts together."""
        return len(self.prompts) * self.params.n


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one of the answers gained: text or a part of a call, then the reason of its end.

    Attributes:
        index: which answer: those to the first prompt come first.
        logprobs: of the new tokens; None when not asked for.
        prompt_logprobs: of the prompt's tokens, in an answer's first piece, when asked for.
        finish_reason: `stop`, `length` or `tool_calls` in an answer's last piece.
    """

    index: int
    text: str = ""
    call: CallPiece | None = None
    logprobs: Sequence[TokenLogprob] | None = None
    prompt_logprobs: Sequence[TokenLogprob | None] | None = None
    finish_reason: str | None = None


@dataclass
class Usage:
    """Tokens spent on a request.

    Attributes:
        cached_tokens: prompt tokens found in the cache; None until the engine has said.
    """

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int | None = None

    def count(self, delta: Delta) -> None:
        """Take note of what the engine brings."""
        self.completion_tokens += len(delta.token_ids)
        if delta.num_cached_tokens is not None and delta.index == 0:
            self.cached_tokens = (self.cached_tokens or 0) + delta.num_cached_tokens


@dataclass
class Job:
    """A request whose answers are being made.

    Attributes:
        streams: of the engine, one per prompt.
        usage: counted while `pieces` is read.
    """

    service: Service
    ask: Ask
    streams: Sequence[DeltaStream]
    usage: Usage = field(init=False)

    def __post_init__(self) -> None:
        self.usage = Usage(sum(len(prompt) for prompt in self.ask.prompts))

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The answers piece by piece, once. Closing this ends the work behind it.

        Raises:
            TelechatError, ApiError: the answers cannot be completed.
        """
        plan, num_each = self.ask.tools, self.ask.params.n
        parsers: list[ToolCallParser] = []
        if plan is not None:
            parsers = [
                ToolCallParser(plan.names, only_first=plan.only_first) for _ in range(self.ask.num_answers)
            ]
        still_open = set(range(self.ask.num_answers))
        sources = [self.service.deltas(stream) for stream in self.streams]
        async with aclosing(_merged(sources)) as arrivals:
            async for number, delta in arrivals:
                index = number * num_each + delta.index
                if index not in still_open:
                    continue
                self.usage.count(delta)
                read = _read_calls(parsers[index], index, delta) if parsers else [_as_piece(index, delta)]
                for piece in read:
                    yield piece
                if read and read[-1].finish_reason is not None:
                    still_open.remove(index)
                    if not still_open:
                        return


async def start(service: Service, visit: Visit, ask: Ask) -> Job:
    """Hand the prompts to the engine.

    Raises:
        ApiError, TelechatError: one of them cannot be taken; none is being answered then.
    """
    streams: list[DeltaStream] = []
    try:
        with blamed_on(ask.field):
            visit.check_prompts(ask.prompts)
            for prompt in ask.prompts:
                streams.append(visit.stream(prompt, ask.params, adapter=ask.adapter))
    except BaseException:
        for stream in streams:
            await stream.aclose()
        raise
    return Job(service, ask, streams)


@contextmanager
def blamed_on(field: str) -> Iterator[None]:
    """Errors about a prompt name the field of the request that holds it."""
    try:
        yield
    except ContextLengthError as error:
        raise ApiError(400, str(error), code="context_length_exceeded", param=field) from error
    except PromptError as error:
        raise bad_field(str(error), field) from error


def _as_piece(index: int, delta: Delta) -> Piece:
    return Piece(
        index=index,
        text=delta.text,
        logprobs=delta.logprobs,
        prompt_logprobs=delta.prompt_logprobs,
        finish_reason=delta.finish_reason,
    )


def _read_calls(parser: ToolCallParser, index: int, delta: Delta) -> list[Piece]:
    found = parser.push(delta.text)
    finish_reason: str | None = "stop" if parser.is_complete else delta.finish_reason
    if finish_reason is not None:
        found += parser.finish()
    if parser.num_calls and finish_reason == "stop":
        finish_reason = "tool_calls"
    pieces: list[Piece] = []
    logprobs: Sequence[TokenLogprob] | None = delta.logprobs
    if logprobs and not any(isinstance(part, TextPiece) for part in found):
        # The tokens are held back as text, or belong to a call; what is known of them is told all the same.
        pieces.append(Piece(index=index, logprobs=logprobs))
        logprobs = None
    for part in found:
        if isinstance(part, CallPiece):
            pieces.append(Piece(index=index, call=part))
        else:
            pieces.append(Piece(index=index, text=part.text, logprobs=logprobs))
            logprobs = None
    if finish_reason is not None:
        pieces.append(Piece(index=index, finish_reason=finish_reason))
    return pieces


async def _merged(sources: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[tuple[int, Delta], None]:
    """What several sources bring, as it comes, with the number of its source."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for delta in only:
                yield 0, delta
        return
    waiting = {_next(source): number for number, source in enumerate(sources)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                found = task.result()
                if found is not None:
                    waiting[_next(sources[number])] = number
                    yield number, found
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for source in sources:
            await source.aclose()


def _next(source: AsyncIterator[Delta]) -> asyncio.Task[Delta | None]:
    async def read() -> Delta | None:
        return await anext(source, None)

    return asyncio.ensure_future(read())
