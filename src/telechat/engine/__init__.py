"""Generation: requests, scheduler, runner, sampler, and the two fronts `LLM` (offline) and `AsyncEngine`
(service).

The modules, from the inside out: `request` (the record), `scheduler` (policy without tensors), `runner`
(model and cache), `sampler` (logits to tokens), `text` (tokens to text), `engine` (the step loop), `llm` and
`async_engine`.
"""

from telechat.engine.async_engine import AsyncEngine, QueueFullError
from telechat.engine.engine_process import EngineDiedError
from telechat.engine.llm import LLM
from telechat.engine.loop import EngineClosedError, EngineStepError
from telechat.engine.outputs import Completion, Delta, FinishReason, RequestOutput, TokenLogprob
from telechat.engine.sampling_params import SamplingParams, StructuredOutputs
from telechat.engine.streams import Stream

__all__ = [
    "LLM",
    "AsyncEngine",
    "Completion",
    "Delta",
    "EngineClosedError",
    "EngineDiedError",
    "EngineStepError",
    "FinishReason",
    "QueueFullError",
    "RequestOutput",
    "SamplingParams",
    "Stream",
    "StructuredOutputs",
    "TokenLogprob",
]
