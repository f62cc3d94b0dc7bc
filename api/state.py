"""What the routes work with, built once for the application and handed to each route."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.news import NewsDesk
from api.rate_limit import RateLimit
from api.uploads import Uploads
from jobs.artifacts import ArtifactStore
from jobs.broker import CeleryAnnouncer
from jobs.keys import KeyStore
from jobs.model_store import ModelStore
from jobs.outbox import Outbox
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.text_store import TextStore
from jobs.webhook_secrets import WebhookSecrets


@dataclass(frozen=True)
class State:
    """The application's parts."""

    settings: Settings
    store: JobStore
    keys: KeyStore
    artifacts: ArtifactStore
    announcer: CeleryAnnouncer
    news: NewsDesk
    rate_limit: RateLimit
    outbox: Outbox
    webhook_secrets: WebhookSecrets
    models: ModelStore
    texts: TextStore
    uploads: Uploads


def parts_of(request: Request) -> State:
    """The parts of the application that the request is for."""
    parts: State = request.app.state.parts
    return parts


async def _parts(request: Request) -> State:
    return parts_of(request)


Parts = Annotated[State, Depends(_parts)]
