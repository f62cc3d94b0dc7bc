"""The FastAPI application, put together from its parts."""

import importlib.metadata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from opentelemetry.trace import TracerProvider
from sqlalchemy import Engine
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from api import problems
from api.body_limit import BodyLimit
from api.compression import CompressedDocuments
from api.host_guard import HostGuard
from api.news import NewsDesk
from api.rate_limit import RateLimit, RateLimitHeaders
from api.request_log import RequestLog
from api.routes import artifacts, datasets, events, jobs, metrics, models, service, webhooks
from api.state import State
from api.uploads import Uploads
from jobs import tracing
from jobs.artifacts import ArtifactStore
from jobs.broker import make_announcer
from jobs.database import make_engine
from jobs.keys import KeyStore
from jobs.model_store import ModelStore
from jobs.outbox import Outbox
from jobs.sealing import Sealer
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.text_store import TextStore
from jobs.webhook_secrets import WebhookSecrets

_DESCRIPTION = """
Send `POST /jobs` with a model and a target size, follow the job, and get back a stock checkpoint with fewer layers,
with the evidence of what it cost in quality. Errors are `application/problem+json` (RFC 9457).
"""


_CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST", "PUT", "DELETE"],
    "allow_headers": ["*"],
    "expose_headers": ["ETag", "Location", "Retry-After", "RateLimit", "RateLimit-Policy", "X-Request-ID"],
}
"""No cookies: a page has to hold a key of its own."""

_PROBES = {"/healthz", "/readyz", "/metrics"}
"""Asked every few seconds by machines, and in no trace."""


class _Application(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        """As FastAPI's, inside of the log of requests: it also sees the answers to unexpected errors."""
        return RequestLog(super().build_middleware_stack())


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The application for these settings.

    Args:
        engine: of the settings' database, from a caller who shares its pool; disposed of when the application ends.
    """
    engine = engine or make_engine(settings.database)
    store = JobStore(
        engine,
        max_queued=settings.max_queued_jobs,
        max_per_owner=settings.max_jobs_per_key,
        idempotency_seconds=settings.idempotency_hours * 3600,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.dispose()
        tracing.stop()

    app = _Application(
        title="FlattenGPT",
        version=importlib.metadata.version("flattengpt"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        responses=problems.responses(400),
        telemetry=_telemetry(tracing.start(settings, "api")),
    )
    app.state.parts = State(
        settings,
        store,
        KeyStore(engine),
        ArtifactStore(settings.artifacts),
        make_announcer(settings),
        NewsDesk(store),
        RateLimit(settings),
        Outbox(engine),
        WebhookSecrets(engine, Sealer(settings)),
        ModelStore(settings),
        TextStore(settings),
        Uploads(),
    )
    problems.install(app)
    if settings.auth == "none":
        # The loopback address is the only guard then: a page in a browser must not get past it by DNS rebinding.
        app.add_middleware(HostGuard)
    limits = {"/models/": settings.max_model_bytes, "/datasets/": settings.max_dataset_bytes}
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, uploads=limits)
    app.add_middleware(CompressedDocuments)
    app.add_middleware(RateLimitHeaders)
    if origins := [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]:
        app.add_middleware(CORSMiddleware, allow_origins=origins, **_CORS)
    for module in (jobs, events, artifacts, models, datasets, webhooks, service, metrics):
        app.include_router(module.router)
    _describe_problems(app)
    return app


def _telemetry(provider: TracerProvider | None) -> TelemetryConfig:
    """FastAPI's own spans, one a request, and nothing else: its logs would hold the texts of errors."""
    return {
        "tracer_provider": provider,
        "tracing": provider is not None,
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        "auto_configure": False,
        "exclude": lambda scope: scope.get("path") in _PROBES,
    }


def _describe_problems(app: FastAPI) -> None:
    """Let the OpenAPI document describe the problem documents that the routes really answer with."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            schemas = schema["components"]["schemas"]
            schemas.pop("HTTPValidationError", None)
            schemas.pop("ValidationError", None)
            problem = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(problem.pop("$defs"))
            schemas["Problem"] = problem
            for operation in (entry for path in schema["paths"].values() for entry in path.values()):
                # FastAPI's own entry, on routes whose parameters cannot be invalid.
                if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                    del operation["responses"]["422"]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
