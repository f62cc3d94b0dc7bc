"""The service's API as `flattengpt serve` runs it, and beside it, in the same process, a plain FastAPI application.

The plain one has a single route, which runs one primary-key SELECT through the same pool of connections.
"""

import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine, select
from starlette.types import ASGIApp, Receive, Scope, Send

from api.app import create_app
from jobs.database import make_engine
from jobs.logs import configure_logs
from jobs.settings import Settings
from jobs.tables import Job

PLAIN = "/plain"


def plain_app(engine: Engine) -> FastAPI:
    """The route to compare with."""
    app = FastAPI()

    @app.get(PLAIN + "/{job_id}")
    def row(job_id: str) -> dict[str, Any]:
        with engine.connect() as connection:
            return dict(connection.execute(select(Job.__table__).where(Job.id == job_id)).mappings().one())

    return app


class Both:
    """Either application, by the path."""

    def __init__(self, service: ASGIApp, plain: ASGIApp) -> None:
        self._service, self._plain = service, plain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; the service alone is told of start and end."""
        is_plain = scope["type"] == "http" and scope["path"].startswith(PLAIN)
        await (self._plain if is_plain else self._service)(scope, receive, send)


def main() -> None:
    """Serve on a free port of this machine, whose number is printed, until stopped."""
    settings = Settings()
    configure_logs(settings)
    engine = make_engine(settings.database)
    app = Both(create_app(settings, engine), plain_app(engine))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)  # noqa: T201
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, server_header=False))
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
