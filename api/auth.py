"""Who asks: the API key of a request, what it may do, and the jobs that it may see."""

from collections.abc import Callable
from typing import Annotated, Generic, TypeVar

from anyio.to_thread import run_sync
from fastapi import Request, Security
from fastapi.security import HTTPBearer, SecurityScopes
from fastapi.security.base import SecurityBase
from starlette.exceptions import HTTPException

from api.state import State, parts_of
from jobs.keys import KeyRecord
from jobs.scopes import Scope
from jobs.store import JobStore

_bearer = HTTPBearer(
    scheme_name="ApiKey",
    bearerFormat="fgpt_...",
    description="A key that `flattengpt keys create` made. Not asked for where FLATTENGPT_AUTH is none.",
    auto_error=False,
)


T = TypeVar("T")


class _Asked(SecurityBase, Generic[T]):
    """A dependency that gives what the request's key opens, by `give`; the key is None where none is asked for.

    One for all of it: each further one that FastAPI resolves costs a request half of what reading its job's row does.
    """

    def __init__(self, give: Callable[[State, KeyRecord | None], T]) -> None:
        self.model, self.scheme_name, self._give = _bearer.model, _bearer.scheme_name, give

    async def __call__(self, request: Request, needed: SecurityScopes) -> T:
        """What the key opens.

        Raises:
            HTTPException: 401 without a key or with one that may not be used, whatever the reason; 403 without the
                scope.
            TooManyRequests: the key has asked too often.
        """
        parts = parts_of(request)
        if parts.settings.auth == "none":
            return self._give(parts, None)
        given = await _bearer(request)
        if given is None:
            raise HTTPException(401, "Give an API key: Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"})
        key = await run_sync(_counted, request, parts, given.credentials)
        for scope in needed.scopes:
            if not key.may(scope):
                challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
                raise HTTPException(
                    403, f"The API key lacks the scope {scope}; it has {', '.join(key.scopes)}.", challenge
                )
        return self._give(parts, key)


def _counted(request: Request, parts: State, given: str) -> KeyRecord:
    """The key that was given, once more in use."""
    key = parts.keys.authenticate(given)
    if key is None:
        challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise HTTPException(401, "The API key is not valid: it is wrong, expired or revoked.", challenge)
    parts.rate_limit.count(request, key.id)
    return key


def _jobs_of(parts: State, key: KeyRecord | None) -> JobStore:
    return parts.store if key is None else parts.store.of(key.id, sees_all=key.is_admin)


_jobs = _Asked(_jobs_of)
_owner = _Asked(lambda _, key: "" if key is None else key.id)
_key = _Asked(lambda _, key: key)

Owner = Annotated[str, Security(_owner, scopes=[Scope.JOBS_WRITE])]
"""Whose jobs the request's key makes."""

ReadableJobs = Annotated[JobStore, Security(_jobs, scopes=[Scope.JOBS_READ])]
WritableJobs = Annotated[JobStore, Security(_jobs, scopes=[Scope.JOBS_WRITE])]
"""The jobs as the request's key may see them. Routes take them from here, never from `Parts`."""

any_key, admin_key = Security(_key), Security(_key, scopes=[Scope.ADMIN])
reading_key, uploading_key = Security(_key, scopes=[Scope.JOBS_READ]), Security(_key, scopes=[Scope.MODELS_WRITE])
"""For routes that need nothing but the permission."""
