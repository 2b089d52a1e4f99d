"""MindIE's GET routes: signs of life, facts about the service, and `/stopService` on the management port.

They make the model work only in `/health/timed`. Values that this service does not know are null.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import aclosing, closing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from telechat import __version__
from telechat.engine.sampling_params import SamplingParams
from telechat.errors import TelechatError
from telechat.serve.errors import ApiError, unavailable
from telechat.serve.mindie.refusals import refusal
from telechat.serve.service import Service

logger = logging.getLogger(__name__)

DEFAULT_TIMED_SECONDS = 600
_MAX_TIMED_SECONDS = 600


def metadata_router(service: Service) -> APIRouter:
    """The GET routes."""
    router = APIRouter(tags=["MindIE"])
    _add_health(router, service)
    _add_models(router, service)

    @router.get("/v2", summary="What the service is")
    async def server() -> dict[str, Any]:
        settings = service.settings.mindie
        extensions = {
            "max_iter_times": settings.max_iter_times,
            "max_prefill_tokens": settings.max_prefill_tokens,
        }
        return {"name": "TeleChat", "version": __version__, "extensions": extensions}

    @router.get("/info", summary="Limits of the service and its model")
    async def info() -> dict[str, Any]:
        return _info(service)

    @router.get("/stopService", summary="End running answers, then stop; on the management port only")
    async def stop_service(request: Request) -> Response:
        port = service.settings.mindie.management_port
        server = request.scope.get("server")
        if port is None or server is None or server[1] != port:
            message = "The service is stopped on the management port of --mindie-config, nowhere else."
            return refusal(ApiError(403, message))
        logger.info("stopping, as asked on the management port")
        # The way of SIGTERM: running answers finish, new requests are refused.
        os.kill(os.getpid(), signal.SIGTERM)
        return JSONResponse({"message": "Service is stopping."})

    return router


def _add_health(router: APIRouter, service: Service) -> None:
    @router.get("/v2/health/live", summary="The process is alive")
    async def live() -> Response:
        return Response()

    @router.get("/v2/health/ready", summary="New requests are taken")
    async def ready() -> Response:
        return _ready(service)

    @router.get("/health/timed", summary="The model answers")
    async def timed(request: Request) -> Response:
        return await _timed(service, request, DEFAULT_TIMED_SECONDS)

    @router.get("/health/timed-{seconds}", summary="The model answers within so many seconds")
    async def timed_within(request: Request, seconds: str) -> Response:
        known = seconds.isascii() and seconds.isdecimal() and len(seconds) <= 3
        if not known or not 1 <= int(seconds) <= _MAX_TIMED_SECONDS:
            message = f"The number of seconds is {seconds[:20]!r}; it must be 1 to {_MAX_TIMED_SECONDS}."
            return refusal(ApiError(400, message))
        return await _timed(service, request, int(seconds))


def _add_models(router: APIRouter, service: Service) -> None:
    async def ready(name: str) -> Response:
        service.check_model(name)
        return _ready(service)

    async def slots(name: str) -> dict[str, Any]:
        service.check_model(name)
        total = service.settings.mindie.max_batch_size or service.admission.limit
        free = max(total - service.admission.num_taken, 0)
        limit = service.model.max_model_len
        return {"total_slots": total, "free_slots": free, "available_tokens_length": limit}

    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        tensors = [{"datatype": "UINT32", "shape": [-1, -1]}]
        return {
            "name": name,
            "platform": "TeleChat",
            "inputs": [{"name": "input0", **tensors[0]}],
            "outputs": [{"name": "output0", **tensors[0]}],
        }

    for path, handler, summary in (
        ("/ready", ready, "Requests for this model are taken"),
        ("/getSlotCount", slots, "How many requests can be taken at once"),
        ("", model, "What the model takes and gives"),
    ):
        _add_both(router, path, handler, summary)


def _add_both(router: APIRouter, path: str, handler: Any, summary: str) -> None:
    """A route with and without a version, which means nothing."""

    async def with_version(name: str, version: str) -> Any:
        return await handler(name)

    async def without_version(name: str) -> Any:
        return await handler(name)

    for pattern, route in (("/versions/{version}", with_version), ("", without_version)):
        router.add_api_route(
            f"/v2/models/{{name:path}}{pattern}{path}",
            route,
            methods=["GET"],
            summary=summary,
            response_model=None,
        )


def _ready(service: Service) -> Response:
    if service.admission.is_draining:
        raise unavailable("The service is shutting down.")
    if not service.engine.is_alive:
        raise unavailable("The engine is not running.")
    return Response()


async def _timed(service: Service, request: Request, seconds: int) -> Response:
    """Let the model write one token."""
    try:
        async with asyncio.timeout(seconds):
            await _write_one_token(service, request)
    except TimeoutError:
        return refusal(unavailable(f"The model did not answer within {seconds} seconds."))
    except (ApiError, TelechatError) as error:
        return refusal(error)
    return Response()


async def _write_one_token(service: Service, request: Request) -> None:
    with closing(service.admit(request)) as visit:
        ids = await service.encode([{"role": "user", "content": "1"}])
        stream = visit.stream(ids, SamplingParams(max_tokens=1, temperature=0.0))
        async with aclosing(service.deltas(stream)) as deltas:
            async for _ in deltas:
                pass


def _info(service: Service) -> dict[str, Any]:
    settings, limit = service.settings, service.model.max_model_len
    model = {
        "model_device_type": None,
        "model_dtype": None,
        "model_id": service.model_name,
        "model_pipeline_tag": "text-generation",
        "model_sha": None,
        "max_total_tokens": limit,
    }
    return {
        "docker_label": None,
        "max_batch_total_tokens": settings.mindie.max_prefill_tokens,
        "max_best_of": 1,
        "max_concurrent_requests": settings.mindie.max_batch_size or settings.max_pending_requests,
        "max_stop_sequences": None,
        "max_waiting_tokens": None,
        "sha": None,
        "validation_workers": None,
        "version": __version__,
        "waiting_served_ratio": None,
        "models": [model],
        "max_input_length": min(settings.max_prompt_tokens or limit - 1, limit - 1),
    }
