"""Tokens of a running `generate` call, one by one.

`generate` runs in a thread of its own and hands tokens over through a queue; closing the iterator stops it at
the next token. Knows nothing of text.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer


class _TokenQueue(BaseStreamer):
    """Puts every generated token id into a queue; the first call brings the prompt."""

    def __init__(self) -> None:
        self.items: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
        self._seen_prompt = False

    def put(self, value: Tensor) -> None:
        if not self._seen_prompt:
            self._seen_prompt = True
            return
        for token_id in value.flatten().tolist():
            self.items.put(token_id)

    def end(self) -> None:
        """The thread says when it is done, also after an error."""


class _Asked(StoppingCriteria):
    """Stops as soon as the reader has gone away."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        is_done = torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)
        return is_done


def generated_tokens(generate: Callable[..., Any], **arguments: Any) -> Iterator[int]:
    """Token ids as `generate(**arguments)` makes them, end tokens included. Its errors are raised here."""
    tokens, asked = _TokenQueue(), _Asked()
    criteria = StoppingCriteriaList([*(arguments.pop("stopping_criteria", None) or []), asked])

    def run() -> None:
        try:
            generate(**arguments, streamer=tokens, stopping_criteria=criteria)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader must get it
            tokens.items.put(error)
        finally:
            tokens.items.put(None)

    thread = threading.Thread(target=run, name="telechat-generate", daemon=True)
    thread.start()
    try:
        while (item := tokens.items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        asked.event.set()
        thread.join()
