"""Who asks: the API key of a request, what it may do, and the jobs that it may see."""

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from starlette.exceptions import HTTPException

from api.state import State
from jobs.keys import KeyRecord
from jobs.scopes import Scope
from jobs.store import JobStore

_bearer = HTTPBearer(
    scheme_name="ApiKey",
    bearerFormat="fgpt_...",
    description="A key that `flattengpt keys create` made. Not asked for where FLATTENGPT_AUTH is none.",
    auto_error=False,
)


Given = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def api_key(request: Request, needed: SecurityScopes, given: Given) -> KeyRecord | None:
    """The key of the request; None where none is asked for.

    Raises:
        HTTPException: 401 without a key or with one that may not be used, whatever the reason; 403 without the scope.
        TooManyRequests: the key has asked too often.
    """
    parts: State = request.app.state.parts
    if parts.settings.auth == "none":
        return None
    if given is None:
        raise HTTPException(401, "Give an API key: Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"})
    key = await run_sync(_counted, request, parts, given.credentials)
    for scope in needed.scopes:
        if not key.may(scope):
            challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
            raise HTTPException(403, f"The API key lacks the scope {scope}; it has {', '.join(key.scopes)}.", challenge)
    return key


def _counted(request: Request, parts: State, given: str) -> KeyRecord:
    """The key that was given, once more in use."""
    key = parts.keys.authenticate(given)
    if key is None:
        challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise HTTPException(401, "The API key is not valid: it is wrong, expired or revoked.", challenge)
    parts.rate_limit.count(request, key.id)
    return key


# These ask for the key by a call: each further dependency that FastAPI resolves costs as much as reading a job's row.
async def _jobs(request: Request, needed: SecurityScopes, given: Given) -> JobStore:
    key = await api_key(request, needed, given)
    store: JobStore = request.app.state.parts.store
    return store if key is None else store.of(key.id, sees_all=key.is_admin)


async def _owner(request: Request, needed: SecurityScopes, given: Given) -> str:
    key = await api_key(request, needed, given)
    return "" if key is None else key.id


Owner = Annotated[str, Security(_owner, scopes=[Scope.JOBS_WRITE])]
"""Whose jobs the request's key makes."""

ReadableJobs = Annotated[JobStore, Security(_jobs, scopes=[Scope.JOBS_READ])]
WritableJobs = Annotated[JobStore, Security(_jobs, scopes=[Scope.JOBS_WRITE])]
"""The jobs as the request's key may see them. Routes take them from here, never from `Parts`."""

any_key, admin_key = Security(api_key), Security(api_key, scopes=[Scope.ADMIN])
reading_key, uploading_key = Security(api_key, scopes=[Scope.JOBS_READ]), Security(api_key, scopes=[Scope.MODELS_WRITE])
"""For routes that need nothing but the permission."""
