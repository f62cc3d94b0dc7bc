"""API keys: how they look, and every query on them. Knows nothing of HTTP.

A key is `fgpt_ID_SECRET` and a checksum. The database has the id, which may be seen, and the SHA-256 of the whole: 200
random bits cannot be guessed from it, so that a slow hash or another secret would only cost time with each request.
All times are the database's.
"""

import base64
import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import SecretStr
from sqlalchemy import ColumnElement, Engine, Row, bindparam, case, func, or_, select, update
from sqlalchemy.exc import IntegrityError

from flattengpt_core.errors import InvalidRequest
from jobs.clock import now_plus
from jobs.database import reader, sessions
from jobs.errors import KeyNameTaken, KeyNotFound
from jobs.scopes import Scope
from jobs.tables import ApiKey

_KEY = re.compile(r"(fgpt_([a-z2-7]{16})_[a-z2-7]{40})([0-9a-f]{8})")
_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)
_NOTE_USE_SECONDS = 60
_DAY_SECONDS = 86_400


class KeyState(StrEnum):
    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True)
class KeyRecord:
    """A key as it was at one moment, without its secret."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    state: KeyState
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @property
    def is_admin(self) -> bool:
        """Whether the key may do everything."""
        return Scope.ADMIN in self.scopes

    def may(self, scope: str) -> bool:
        """Whether the key has the scope."""
        return self.is_admin or scope in self.scopes


@dataclass(frozen=True)
class NewKey:
    """A key that was just made: the only time that it is whole."""

    record: KeyRecord
    key: SecretStr


class KeyStore:
    """The API keys of one database."""

    def __init__(self, engine: Engine) -> None:
        self._write, self._read = sessions(engine)
        self._reader = reader(engine)

    def create(self, name: str, scopes: Iterable[Scope], *, expires_days: int | None = None) -> NewKey:
        """Make a key. It can be read from what this returns, and from nowhere else.

        Raises:
            InvalidRequest: the name is no name, or there is no scope.
            KeyNameTaken: a key of this name has not been revoked.
        """
        if not _NAME.fullmatch(name):
            raise InvalidRequest("use 1 to 64 letters, digits and . _ - @.", field="name")
        wanted = sorted(set(scopes), key=list(Scope).index)
        if not wanted:
            raise InvalidRequest(f"give at least one of {', '.join(Scope)}.", field="scopes")
        key_id, key = _new_key()
        row = ApiKey(id=key_id, name=name, hash=_hash(key), scopes=[scope.value for scope in wanted])
        if expires_days is not None:
            row.expires_at = now_plus(expires_days * _DAY_SECONDS)
        try:
            with self._write.begin() as session:
                session.add(row)
                session.flush()
                session.refresh(row)
        except IntegrityError:
            raise KeyNameTaken(f"There is a key named {name!r} already: revoke it, or choose another name.") from None
        return NewKey(_record(row, KeyState.ACTIVE), SecretStr(key))

    def all(self) -> list[KeyRecord]:
        """Every key, also those that cannot be used any more, newest first."""
        with self._read() as session:
            rows = session.execute(select(ApiKey, _state()).order_by(ApiKey.created_at.desc(), ApiKey.id))
            return [_record(row, state) for row, state in rows]

    def revoke(self, name_or_id: str) -> KeyRecord:
        """Make a key unusable at once and for good; repeating it by id changes nothing.

        Raises:
            KeyNotFound: no key has this id, and none that was not revoked before this name.
        """
        missing = KeyNotFound(f"There is no key {name_or_id!r} in use; `flattengpt keys list` shows them all.")
        if not _NAME.fullmatch(name_or_id):  # as ids do; PostgreSQL refuses some strings instead of not finding them
            raise missing
        meant = or_(ApiKey.id == name_or_id, (ApiKey.name == name_or_id) & ApiKey.revoked_at.is_(None))
        # The id before the name, should a key be named like another one's id.
        first = select(ApiKey.id).where(meant).order_by(case((ApiKey.id == name_or_id, 0), else_=1)).limit(1)
        revoked = update(ApiKey).values(revoked_at=func.coalesce(ApiKey.revoked_at, now_plus()))
        with self._write.begin() as session:
            row = session.scalar(revoked.where(ApiKey.id == first.scalar_subquery()).returning(ApiKey))
            if row is None:
                raise missing
            return _record(row, KeyState.REVOKED)

    def authenticate(self, key: str) -> KeyRecord | None:
        """The record of a key that may be used now, else None. One look-up by primary key.

        That it was used is noted about once a minute, so that most requests write nothing.
        """
        parts = _KEY.fullmatch(key)
        if parts is None or not hmac.compare_digest(parts[3], _checksum(parts[1])):
            return None
        with self._reader.connect() as connection:  # no session: it would have nothing to keep
            row = connection.execute(_LOOK_UP, {"key_id": parts[2]}).first()
        if row is None or not hmac.compare_digest(row.hash, _hash(key)) or row.state != KeyState.ACTIVE:
            return None
        if not row.used_recently:
            note = update(ApiKey).where(ApiKey.id == row.id, or_(ApiKey.last_used_at.is_(None), ~_USED_RECENTLY))
            with self._write.begin() as session:
                session.execute(note.values(last_used_at=now_plus()))
        return _record(row, row.state)


def _new_key() -> tuple[str, str]:
    """A key's id and the whole key, of 80 and 200 random bits."""
    key_id = _random(10)
    body = f"fgpt_{key_id}_{_random(25)}"
    return key_id, body + _checksum(body)


def _random(count: int) -> str:
    """So many random bytes, a multiple of five, as lower-case letters and digits."""
    return base64.b32encode(secrets.token_bytes(count)).decode().lower()


def _checksum(body: str) -> str:
    """Tells a mistyped or cut key without asking the database, and scanners for leaked secrets a real one."""
    return f"{zlib.crc32(body.encode()):08x}"


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _state() -> ColumnElement[str]:
    return case(
        (ApiKey.revoked_at.is_not(None), KeyState.REVOKED.value),
        (ApiKey.expires_at <= now_plus(), KeyState.EXPIRED.value),
        else_=KeyState.ACTIVE.value,
    )


_USED_RECENTLY = ApiKey.last_used_at > now_plus(-_NOTE_USE_SECONDS)
_LOOK_UP = select(*ApiKey.__table__.columns, _state().label("state"), _USED_RECENTLY.label("used_recently")).where(
    ApiKey.id == bindparam("key_id")
)
"""Made once, for each request needs it."""


def _record(row: ApiKey | Row[*tuple[Any, ...]], state: str) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        name=row.name,
        scopes=tuple(map(Scope, row.scopes)),
        state=KeyState(state),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
