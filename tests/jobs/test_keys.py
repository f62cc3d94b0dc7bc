"""API keys in both databases: what is kept of them, who may use one, and for how long."""

import re
import zlib
from functools import partial

import pytest
from sqlalchemy import Engine, event, select, update

from flattengpt_core.errors import InvalidRequest
from jobs.clock import now_plus
from jobs.errors import KeyNameTaken, KeyNotFound
from jobs.keys import KeyStore, NewKey
from jobs.scopes import Scope
from jobs.tables import ApiKey
from tests.jobs.at_once import at_once

JOBS = (Scope.JOBS_READ, Scope.JOBS_WRITE)


@pytest.fixture
def engine(shared_engine: Engine) -> Engine:
    return shared_engine


@pytest.fixture
def keys(engine: Engine) -> KeyStore:
    return KeyStore(engine)


def whole(new: NewKey) -> str:
    return new.key.get_secret_value()


def with_checksum(body: str) -> str:
    """The checksum is no secret: that it is right must not help."""
    return f"{body}{zlib.crc32(body.encode()):08x}"


def mistyped(key: str) -> str:
    return key[:30] + ("a" if key[30] != "a" else "b") + key[31:]


def statements(engine: Engine) -> list[str]:
    """The SQL that is sent from now on, without the transactions' frames."""
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith(("BEGIN", "SAVEPOINT")):
            sent.append(statement)

    return sent


def set_back(engine: Engine, **seconds: float) -> None:
    """Set times of every key to so many seconds from now."""
    with engine.begin() as connection:
        connection.execute(update(ApiKey).values({name: now_plus(value) for name, value in seconds.items()}))


def test_a_key_is_shown_once_and_kept_as_a_hash(engine: Engine, keys: KeyStore) -> None:
    new = keys.create("ci", [Scope.JOBS_WRITE, Scope.JOBS_READ, Scope.JOBS_READ])
    assert re.fullmatch(rf"fgpt_{new.record.id}_[a-z2-7]{{40}}[0-9a-f]{{8}}", whole(new))
    secret = whole(new).removeprefix(f"fgpt_{new.record.id}_")
    assert secret not in f"{new} {new!r} {keys.all()!r}"
    with engine.connect() as connection:
        assert secret not in str(connection.execute(select(ApiKey.__table__)).all())
    assert (new.record.name, new.record.scopes, new.record.state) == ("ci", JOBS, "active")
    assert (new.record.expires_at, new.record.revoked_at, new.record.last_used_at) == (None, None, None)
    assert keys.authenticate(whole(new)) == new.record


def test_keys_are_not_alike(keys: KeyStore) -> None:
    made = [keys.create(f"key-{n}", JOBS) for n in range(20)]
    assert len({new.record.id for new in made}) == len({whole(new)[22:] for new in made}) == 20


def test_what_is_no_key(keys: KeyStore) -> None:
    key, other = (whole(keys.create(name, JOBS)) for name in ("one", "two"))
    forged = [
        with_checksum(body) for body in (key[:22] + "a" * 40, key[:22] + other[22:62], f"fgpt_{'a' * 16}{key[21:62]}")
    ]
    wrong = [
        *forged, "", "fgpt_", key[:-1], key + "0", key.upper(), " " + key, key.replace("_", "-"), mistyped(key),
        "é" * 70, "\0", "k" * 10_000,
    ]  # fmt: skip
    assert [keys.authenticate(text) for text in wrong] == [None] * len(wrong)
    assert keys.authenticate(key) is not None
    assert with_checksum(key[:62]) == key, "the forged ones differ from a real one in the secret alone"


def test_a_mistyped_key_costs_no_query_and_a_right_one_a_single_one(engine: Engine, keys: KeyStore) -> None:
    key = whole(keys.create("ci", JOBS))
    keys.authenticate(key)
    sent = statements(engine)
    keys.authenticate(mistyped(key))
    assert sent == []
    keys.authenticate(key)
    assert [statement.split()[0] for statement in sent] == ["SELECT"]


def test_use_is_noted_once_a_minute(engine: Engine, keys: KeyStore) -> None:
    key = whole(keys.create("ci", JOBS))
    sent = statements(engine)
    for _ in range(3):
        keys.authenticate(key)
    assert [statement.split()[0] for statement in sent] == ["SELECT", "UPDATE", "SELECT", "SELECT"]
    [first] = keys.all()
    set_back(engine, last_used_at=-61)
    at_once(*[partial(keys.authenticate, key)] * 4)
    [later] = keys.all()
    assert first.last_used_at is not None
    assert later.last_used_at is not None
    assert later.last_used_at >= first.last_used_at
    assert later.last_used_at > later.created_at


def test_a_key_expires_by_the_databases_clock(engine: Engine, keys: KeyStore) -> None:
    new = keys.create("ci", JOBS, expires_days=2)
    assert new.record.expires_at is not None
    assert 2 * 86_400 - 1 <= (new.record.expires_at - new.record.created_at).total_seconds() <= 2 * 86_400 + 1
    set_back(engine, expires_at=1)
    assert keys.authenticate(whole(new)) is not None
    set_back(engine, expires_at=-1)
    assert keys.authenticate(whole(new)) is None
    assert [key.state for key in keys.all()] == ["expired"]


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_revoked_key_is_of_no_use_from_then_on(keys: KeyStore, by: str) -> None:
    new, other = keys.create("ci", JOBS), keys.create("other", JOBS)
    revoked = keys.revoke(getattr(new.record, by))
    assert (revoked.id, revoked.state, revoked.revoked_at is None) == (new.record.id, "revoked", False)
    assert keys.authenticate(whole(new)) is None
    assert keys.authenticate(whole(other)) is not None
    assert keys.revoke(new.record.id) == revoked, "again changes nothing"


def test_a_name_is_of_one_key_in_use(keys: KeyStore) -> None:
    old = keys.create("ci", JOBS)
    with pytest.raises(KeyNameTaken, match="'ci'"):
        keys.create("ci", [Scope.ADMIN])
    keys.revoke("ci")
    new = keys.create("ci", JOBS)
    assert keys.revoke("ci").id == new.record.id != old.record.id
    with pytest.raises(KeyNotFound, match="'ci'"):
        keys.revoke("ci")


def test_one_name_asked_for_at_once_makes_one_key(keys: KeyStore) -> None:
    def create() -> str:
        try:
            return keys.create("ci", JOBS).record.id
        except KeyNameTaken:
            return ""

    assert sorted(map(bool, at_once(*[create] * 4))) == [False] * 3 + [True]
    assert len(keys.all()) == 1


def test_an_id_means_its_key_and_not_one_of_that_name(keys: KeyStore) -> None:
    new = keys.create("ci", JOBS)
    keys.create(new.record.id, JOBS)
    assert keys.revoke(new.record.id).name == "ci"


def test_what_cannot_be_made_or_revoked(keys: KeyStore) -> None:
    for name in ("", "a b", "a\0", "é", "n" * 65, "a\n"):
        with pytest.raises(InvalidRequest) as refusal:
            keys.create(name, JOBS)
        assert refusal.value.field == "name"
        with pytest.raises(KeyNotFound):
            keys.revoke(name)
    with pytest.raises(InvalidRequest, match="jobs:read, jobs:write, models:write, admin"):
        keys.create("ci", [])
    assert keys.all() == []


def test_an_admin_may_do_everything_and_nobody_else_more_than_was_said(keys: KeyStore) -> None:
    admin, reader = keys.create("ops", [Scope.ADMIN]).record, keys.create("page", [Scope.JOBS_READ]).record
    assert [admin.may(scope) for scope in Scope] == [True] * 4
    assert [reader.may(scope) for scope in Scope] == [True, False, False, False]
    assert (admin.is_admin, reader.is_admin) == (True, False)
