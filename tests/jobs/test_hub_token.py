"""A client's own token of the Hub: sealed while its job lives, gone when it has ended, whichever way."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import IntegrityError

from flattengpt_core.errors import InvalidRequest
from jobs.errors import IdempotencyMismatch, LeaseLost, SealingUnavailable
from jobs.hub_token import MAX_LENGTH, HubToken, check
from jobs.records import Lease
from jobs.sealing import Sealer
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from jobs.tables import Job

TOKEN, OTHER = "hf_oneClientsOwnTokenOfTheHub", "hf_anotherTokenOfTheHub"
SPEC = JobSpec(model="acme/tiny", layers=4)
MakeToken = Callable[..., HubToken]


@pytest.fixture
def engine(shared_engine: Engine) -> Engine:
    return shared_engine


@pytest.fixture
def token(settings: Settings) -> MakeToken:
    return lambda secret=TOKEN: HubToken(SecretStr(secret), Sealer(settings))


def kept(engine: Engine, job_id: str) -> tuple[str | None, str | None]:
    """The token and its digest, as the database has them."""
    with engine.connect() as connection:
        row = connection.execute(select(Job.hub_token, Job.hub_token_digest).where(Job.id == job_id)).one()
        return row[0], row[1]


def taken(store: JobStore, job_id: str) -> Lease:
    lease = store.take(job_id, worker="w", lease_seconds=60)
    assert lease is not None
    return lease


def test_it_is_sealed_and_only_the_owner_of_the_job_gets_it(
    engine: Engine, store: JobStore, settings: Settings, token: MakeToken
) -> None:
    job = store.submit(SPEC, hub_token=token())
    lease = taken(store, job.id)
    sealed = store.sealed_hub_token(lease)
    assert sealed is not None
    assert Sealer(settings).open(sealed).get_secret_value() == TOKEN
    with engine.connect() as connection:
        everything = [
            str(connection.execute(text(f"SELECT * FROM {table}")).all()) for table in ("job", "job_event", "tally")
        ]
    assert not [rows for rows in everything if TOKEN in rows]
    assert (job.own_hub_token, store.submit(SPEC).own_hub_token) == (True, False)
    with pytest.raises(LeaseLost):
        store.sealed_hub_token(Lease(job.id, lease.attempt + 1))


ENDS: dict[str, Callable[[JobStore, str], Any]] = {
    "succeeded": lambda store, job_id: store.succeed(taken(store, job_id)),
    "failed": lambda store, job_id: store.fail(taken(store, job_id), {"code": "broken"}),
    "cancelled while queued": lambda store, job_id: store.cancel(job_id),
    "cancelled while running": lambda store, job_id: (
        lease := taken(store, job_id), store.cancel(job_id), store.cancelled(lease)
    ),
    "died once too often": lambda store, job_id: store.died(taken(store, job_id), reason="killed", max_attempts=1),
    "stopped, since cancelled": lambda store, job_id: (
        lease := taken(store, job_id), store.cancel(job_id), store.hand_back(lease, reason="told to")
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_it_is_wiped_when_the_job_ends(engine: Engine, store: JobStore, token: MakeToken, end: str) -> None:
    job = store.submit(SPEC, hub_token=token())
    ENDS[end](store, job.id)
    assert store.get(job.id).ended
    assert kept(engine, job.id)[0] is None


def test_it_is_wiped_when_the_lease_ran_out_too_often_and_no_sooner(
    engine: Engine, store: JobStore, token: MakeToken
) -> None:
    job = store.submit(SPEC, hub_token=token())
    for losses in (1, 2):
        assert store.take(job.id, worker="w", lease_seconds=-1)
        assert kept(engine, job.id)[0] is not None
        store.release_expired(max_losses=2)
        assert store.get(job.id).ended is (losses == 2)
    assert kept(engine, job.id)[0] is None


def test_a_running_job_keeps_it_through_a_cancel(engine: Engine, store: JobStore, token: MakeToken) -> None:
    job = store.submit(SPEC, hub_token=token())
    taken(store, job.id)
    store.cancel(job.id)
    assert kept(engine, job.id)[0] is not None


def test_the_database_itself_refuses_a_token_beyond_the_end(engine: Engine, store: JobStore, token: MakeToken) -> None:
    job = store.submit(SPEC, hub_token=token())
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(update(Job).where(Job.id == job.id).values(status="failed"))


def test_a_repeated_request_is_known_by_the_digest_also_after_the_end(
    engine: Engine, store: JobStore, token: MakeToken
) -> None:
    submit = partial(store.submit, SPEC, idempotency_key="k")
    job = submit(hub_token=token())
    store.cancel(job.id)
    assert submit(hub_token=token()).id == job.id
    found = store.made_by("k", SPEC, hub_token=token())
    assert found is not None
    assert found.id == job.id
    for other in (token(OTHER), None):
        with pytest.raises(IdempotencyMismatch):
            submit(hub_token=other)
        with pytest.raises(IdempotencyMismatch):
            store.made_by("k", SPEC, hub_token=other)
    assert store.made_by("unknown", SPEC) is None
    digest = kept(engine, job.id)[1]
    assert digest != kept(engine, store.submit(SPEC, hub_token=token()).id)[1], "each has a salt of its own"


def test_a_retry_needs_one_again(engine: Engine, store: JobStore, token: MakeToken) -> None:
    """Without it the worker's would be used, which has other rights."""
    job = store.submit(SPEC, hub_token=token())
    store.cancel(job.id)
    with pytest.raises(InvalidRequest, match="send it again") as caught:
        store.retry(job.id)
    assert caught.value.field == "Hub-Token"
    again = store.retry(job.id, hub_token=token(OTHER))
    assert again.own_hub_token
    assert kept(engine, again.id)[0] is not None


def test_a_request_from_before_an_upgrade_is_still_the_same(engine: Engine, store: JobStore) -> None:
    spec = JobSpec.model_validate({"model": "acme/tiny", "layers": 4, "publish": {"repo_id": "acme/flat"}})
    job = store.submit(spec, idempotency_key="k")
    with engine.begin() as connection:
        old = spec.as_request() | {"publish": {"repo_id": "acme/flat", "private": True}}
        connection.execute(update(Job).where(Job.id == job.id).values(request=old))
    assert store.submit(spec, idempotency_key="k").id == job.id


def test_without_a_key_nothing_is_kept(store: JobStore, settings: Settings) -> None:
    sealer = Sealer(settings.model_copy(update={"broker_url": "redis://127.0.0.1"}))
    with pytest.raises(SealingUnavailable):
        store.submit(SPEC, hub_token=HubToken(SecretStr(TOKEN), sealer))
    assert store.page().jobs == []


@pytest.mark.parametrize("odd", ["", "two words", "a\nb", "é", "x" * (MAX_LENGTH + 1)])
def test_what_is_no_token(odd: str) -> None:
    with pytest.raises(ValueError, match="without spaces") as caught:
        check(SecretStr(odd))
    assert not odd or odd not in str(caught.value)
