"""The HTTP application: routes, access, cross-origin rules and error bodies put together.

Makes no engine and opens no port; `server` does.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from telechat import __version__
from telechat.serve.admission import Admission
from telechat.serve.auth import KeyCheck
from telechat.serve.contract import ServiceEngine
from telechat.serve.docs_page import docs_router
from telechat.serve.errors import install_error_handlers
from telechat.serve.gptdialog import SCHEMA as GPTDIALOG_SCHEMA
from telechat.serve.gptdialog import gptdialog_router
from telechat.serve.health import health_router
from telechat.serve.openai.chat import chat_router
from telechat.serve.openai.chat_fields import ChatRequest
from telechat.serve.openai.models import models_router
from telechat.serve.openapi import install_openapi
from telechat.serve.service import Service
from telechat.serve.settings import ServeSettings


def create_app(
    engine: ServiceEngine,
    settings: ServeSettings,
    *,
    keys: Sequence[str] | None = None,
    admission: Admission | None = None,
) -> FastAPI:
    """The service for one engine.

    Args:
        engine: answers prompts; closing it is the caller's business.
        settings: the operator's decisions.
        keys: keys that open the service, empty for everybody; None takes `settings.api_keys`.
        admission: counts requests; given when the caller wants to drain the service.
    """
    service = Service(
        engine=engine,
        settings=settings,
        admission=admission or Admission(settings.max_pending_requests),
    )
    # FastAPI's own documentation pages load their code from outside hosts.
    app = FastAPI(title="TeleChat", version=__version__, docs_url=None, redoc_url=None)
    for router in (
        chat_router(service),
        models_router(service),
        gptdialog_router(service),
        health_router(service),
        docs_router(app),
    ):
        app.include_router(router)
    install_error_handlers(app)
    install_openapi(app, [ChatRequest], {"GptDialogRequest": GPTDIALOG_SCHEMA})
    # The last one added is the outermost: browsers ask about origins before they send keys.
    app.add_middleware(KeyCheck, keys=settings.api_keys if keys is None else tuple(keys))
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("Retry-After",),
        )
    return app
