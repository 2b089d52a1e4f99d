"""`/health` and `/ready`: is the process alive, and should it get new requests?"""

from __future__ import annotations

from fastapi import APIRouter

from telechat.serve.errors import unavailable
from telechat.serve.service import Service


def health_router(service: Service) -> APIRouter:
    """Routes for those who watch the service. They need no key."""
    router = APIRouter(tags=["Operation"])

    @router.get("/health", summary="The process is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", summary="The model is loaded and new requests are taken")
    async def ready() -> dict[str, str]:
        if service.admission.is_draining:
            raise unavailable("The service is shutting down.")
        if not service.engine.is_alive:
            raise unavailable("The engine is not running.")
        return {"status": "ready"}

    return router
