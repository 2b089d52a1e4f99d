"""The HTTP application: routes, access, cross-origin rules, error bodies and observation put together.

Makes no engine and opens no port; `server` does.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from telechat import __version__
from telechat.serve.access_log import AccessLog
from telechat.serve.admission import Admission
from telechat.serve.auth import KeyCheck, KeyRing
from telechat.serve.contract import ServiceEngine
from telechat.serve.docs_page import docs_router
from telechat.serve.errors import install_error_handlers
from telechat.serve.gptdialog import SCHEMA as GPTDIALOG_SCHEMA
from telechat.serve.gptdialog import gptdialog_router
from telechat.serve.health import health_router
from telechat.serve.key_ring import resolve_ring
from telechat.serve.mindie.routes import BODIES as MINDIE_BODIES
from telechat.serve.mindie.routes import SCHEMAS as MINDIE_SCHEMAS
from telechat.serve.mindie.routes import mindie_routers
from telechat.serve.observer import Observer
from telechat.serve.openai.routes import BODIES as OPENAI_BODIES
from telechat.serve.openai.routes import openai_routers
from telechat.serve.openapi import install_openapi
from telechat.serve.origins import OriginCheck
from telechat.serve.service import Service
from telechat.serve.settings import ServeSettings

# FastAPI would ask OpenTelemetry at every request, and send reports to whoever the environment names. What is
# counted here is at /metrics; nothing leaves by itself.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def create_app(
    engine: ServiceEngine,
    settings: ServeSettings,
    *,
    ring: KeyRing | None = None,
    admission: Admission | None = None,
    access_log: AccessLog | None = None,
) -> FastAPI:
    """The service for one engine.

    Args:
        engine: answers prompts; closing it is the caller's business.
        settings: the operator's decisions.
        ring: keys that open the service; None takes those of `settings`.
        admission: counts requests; given when the caller wants to drain the service.
        access_log: gets a line for every request; closing it is the caller's business.
    """
    service = Service(
        engine=engine,
        settings=settings,
        admission=admission or Admission(settings.max_pending_requests),
    )
    # FastAPI's own documentation pages load their code from outside hosts.
    app = FastAPI(
        title="TeleChat", version=__version__, docs_url=None, redoc_url=None, telemetry=NO_TELEMETRY
    )
    for router in (
        *openai_routers(service),
        gptdialog_router(service),
        health_router(service),
        *mindie_routers(service),
        docs_router(app),
    ):
        app.include_router(router)
    install_error_handlers(app)
    install_openapi(
        app, [*OPENAI_BODIES, *MINDIE_BODIES], {"GptDialogRequest": GPTDIALOG_SCHEMA, **MINDIE_SCHEMAS}
    )
    # The last one added is the outermost: browsers ask about origins before they send keys.
    ring = resolve_ring(settings) if ring is None else ring
    app.add_middleware(KeyCheck, ring=ring)
    if ring.is_open and settings.is_loopback:
        app.add_middleware(OriginCheck, allowed=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("Retry-After", "X-Request-Id"),
        )
    service.metrics.watch(
        lambda: engine.replicas,
        lambda: service.admission.num_taken,
        lambda: access_log.num_lost if access_log is not None else 0,
    )
    app.add_middleware(Observer, metrics=service.metrics, log=access_log)
    return app
