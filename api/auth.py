"""Who asks: the API key of a request, what it may do, and the jobs that it may see."""

from collections.abc import Callable, Sequence
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


class Asking(Generic[T]):
    """What a request's key opens, once `opened` has looked at the key: by a blocking call, as it asks the database."""

    def __init__(
        self, request: Request, scopes: Sequence[str], given: str | None, give: Callable[[State, KeyRecord | None], T]
    ) -> None:
        self._request, self._scopes, self._given, self._give = request, scopes, given, give

    def opened(self) -> T:
        """What the key opens, once more in use.

        Raises:
            HTTPException: 401 without a key or with one that may not be used, whatever the reason; 403 without the
                scope.
            TooManyRequests: the key has asked too often.
        """
        parts = parts_of(self._request)
        if parts.settings.auth == "none":
            return self._give(parts, None)
        if self._given is None:
            raise HTTPException(401, "Give an API key: Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"})
        key = parts.keys.authenticate(self._given)
        if key is None:
            challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            raise HTTPException(401, "The API key is not valid: it is wrong, expired or revoked.", challenge)
        parts.rate_limit.count(self._request, key.id)
        for scope in self._scopes:
            if not key.may(scope):
                challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
                raise HTTPException(
                    403, f"The API key lacks the scope {scope}; it has {', '.join(key.scopes)}.", challenge
                )
        return self._give(parts, key)


class _Later(SecurityBase, Generic[T]):
    """A dependency that leaves it to the route to open what the key opens, in the thread that goes on with it.

    For the route that is asked most: two threads, one after the other, cost it a seventh of its time.
    """

    def __init__(self, give: Callable[[State, KeyRecord | None], T]) -> None:
        self.model, self.scheme_name, self._give = _bearer.model, _bearer.scheme_name, give

    async def __call__(self, request: Request, needed: SecurityScopes) -> Asking[T]:
        """The request's claim, not looked at yet."""
        given = await _bearer(request)
        return Asking(request, needed.scopes, given.credentials if given else None, self._give)


class _Asked(SecurityBase, Generic[T]):
    """A dependency that gives what the request's key opens; the key is None where none is asked for.

    One for all of it: each further one that FastAPI resolves costs a request a twentieth of its time.
    """

    def __init__(self, give: Callable[[State, KeyRecord | None], T]) -> None:
        self.model, self.scheme_name, self._later = _bearer.model, _bearer.scheme_name, _Later(give)

    async def __call__(self, request: Request, needed: SecurityScopes) -> T:
        """What the key opens; raises what `Asking.opened` does."""
        asking = await self._later(request, needed)
        return await run_sync(asking.opened)


def _jobs_of(parts: State, key: KeyRecord | None) -> JobStore:
    return parts.store if key is None else parts.store.of(key.id, sees_all=key.is_admin)


_jobs, _jobs_later = _Asked(_jobs_of), _Later(_jobs_of)
_owner = _Asked(lambda _, key: "" if key is None else key.id)
_key = _Asked(lambda _, key: key)

Owner = Annotated[str, Security(_owner, scopes=[Scope.JOBS_WRITE])]
"""Whose jobs the request's key makes."""

ReadableJobs = Annotated[JobStore, Security(_jobs, scopes=[Scope.JOBS_READ])]
JobsToRead = Annotated[Asking[JobStore], Security(_jobs_later, scopes=[Scope.JOBS_READ])]
WritableJobs = Annotated[JobStore, Security(_jobs, scopes=[Scope.JOBS_WRITE])]
"""The jobs as the request's key may see them. Routes take them from here, never from `Parts`."""

any_key, admin_key = Security(_key), Security(_key, scopes=[Scope.ADMIN])
reading_key, uploading_key = Security(_key, scopes=[Scope.JOBS_READ]), Security(_key, scopes=[Scope.MODELS_WRITE])
"""For routes that need nothing but the permission."""
