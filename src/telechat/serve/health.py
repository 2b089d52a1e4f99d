"""`/health`, `/ready`, `/metrics`: is the process alive, does it take requests, how is it doing?"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from telechat.serve.errors import unavailable
from telechat.serve.service import Service


def health_router(service: Service) -> APIRouter:
    """Routes for those who watch the service. `/health` and `/ready` need no key."""
    router = APIRouter(tags=["Operation"])

    @router.get("/health", summary="The process is alive")
    async def health() -> dict[str, str | int]:
        # The number is what MindFormers' chat_web said.
        return {"status": "ok", "code": 200}

    @router.get("/ready", summary="The model is loaded and new requests are taken")
    async def ready() -> dict[str, str]:
        if service.admission.is_draining:
            raise unavailable("The service is shutting down.")
        if not service.engine.is_alive:
            raise unavailable("The engine is not running.")
        return {"status": "ready"}

    @router.get("/metrics", summary="Counts and times for Prometheus", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        text, content_type = service.metrics.render(request.headers.get("accept", ""))
        return Response(text, media_type=content_type)

    return router
