"""Streams of MindIE's forms: a failure becomes the last event, because the status line has long been sent."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from telechat.errors import TelechatError
from telechat.serve import sse
from telechat.serve.errors import ApiError, internal_error
from telechat.serve.mindie.refusals import refusal_body

logger = logging.getLogger(__name__)


async def ending_in_refusal(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """`events`, and one in TGI's error shape when they fail."""
    try:
        async with aclosing(events):
            async for event in events:
                yield event
    except (ApiError, TelechatError) as error:
        yield sse.event(refusal_body(error))
    except Exception:
        # The boundary of the process: the client must learn that the answer is not complete.
        logger.exception("a stream failed")
        yield sse.event(refusal_body(internal_error()))
