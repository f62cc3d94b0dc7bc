"""The outbox: a message for each event that a webhook is told of, and who may send it when."""

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from jobs import changes, outbox
from jobs.clock import now_plus
from jobs.errors import DeliveryNotFound, LeaseLost
from jobs.outbox import GONE, JITTER, SCHEDULE, TRIES, Delivery, DeliveryStatus, Message, Outbox
from jobs.records import Event, Lease
from jobs.spec import JobSpec
from jobs.store import JobStore
from jobs.tables import Job, WebhookDelivery
from tests.jobs.at_once import at_once
from tests.statements import statements

URL = "https://hooks.example.org/flattengpt?token=in-the-query"
ERROR = {"code": "broken", "title": "T", "message": "a long story", "retryable": False}


@pytest.fixture
def box(engine: Engine) -> Outbox:
    return Outbox(engine)


def hooked(*events: str, **changes: Any) -> JobSpec:
    """A request with a webhook."""
    hook = {"url": URL} | ({"events": events} if events else {})
    return JobSpec.model_validate({"model": "local:tiny", "layers": 4, "webhook": hook} | changes)


def taken_job(store: JobStore, spec: JobSpec) -> Lease:
    lease = store.take(store.submit(spec).id, worker="w", lease_seconds=60)
    assert lease is not None
    return lease


def ended(store: JobStore) -> str:
    """The id of a job whose end is told of."""
    lease = taken_job(store, hooked())
    store.succeed(lease)
    return lease.job_id


def only(box: Outbox, job_id: str) -> Delivery:
    (delivery,) = box.log(job_id)
    return delivery


def take_one(box: Outbox) -> Message:
    (message,) = box.take(limit=10)
    return message


def make_due(engine: Engine) -> None:
    """Let the time pass that pending messages wait for."""
    pending = update(WebhookDelivery).where(WebhookDelivery.next_try_at.is_not(None))
    with engine.begin() as connection:
        connection.execute(pending.values(next_try_at=now_plus(-1)))


def waits(engine: Engine) -> float:
    """Seconds until the one message that is there is due, by the database's clock."""
    with engine.connect() as connection:
        due, now = connection.execute(select(WebhookDelivery.next_try_at, now_plus())).one()
    return float((due - now).total_seconds())


# What is told


def test_each_end_of_a_job_is_told_of(store: JobStore, box: Outbox) -> None:
    succeeded, failed, running = (taken_job(store, hooked(labels={"team": "search"})) for _ in range(3))
    store.succeed(succeeded)
    store.fail(failed, ERROR)
    store.cancel(running.job_id)
    assert box.log(running.job_id) == [], "cancelling is no end"
    store.cancelled(running)
    queued = store.submit(hooked()).id
    store.cancel(queued)
    for job_id, end in (
        (succeeded.job_id, "succeeded"), (failed.job_id, "failed"), (running.job_id, "cancelled"), (queued, "cancelled")
    ):  # fmt: skip
        told, last = only(box, job_id), store.events(job_id)[-1]
        assert (told.type, told.seq, told.status) == (f"job.{end}", last.seq, DeliveryStatus.PENDING)
        assert (told.attempts, told.answer, told.last_try_at, told.delivered_at) == (0, None, None, None)
    messages = {message.job_id: message for message in box.take(limit=10)}
    told = json.loads(messages[failed.job_id].body)
    assert told == {
        "type": "job.failed",
        "timestamp": store.events(failed.job_id)[-1].created_at.isoformat(),
        "data": {
            "id": failed.job_id, "status": "failed", "attempt": 1, "model": "local:tiny", "method": "flattengpt",
            "labels": {"team": "search"}, "retry_of": None, "href": f"/jobs/{failed.job_id}",
            "error": {"code": "broken", "title": "T"},
        },
    }  # fmt: skip
    for message in messages.values():
        told = json.loads(message.body)
        assert told["type"] == f"job.{told['data']['status']}"
        assert (message.url, message.owner) == (URL, "")
        assert URL not in message.body


def test_only_what_was_asked_for_is_told_of(store: JobStore, box: Outbox, spec: JobSpec) -> None:
    started, plain = taken_job(store, hooked("started", "failed")), taken_job(store, spec)
    assert json.loads(take_one(box).body)["data"]["status"] == "running"
    for lease in (started, plain):
        store.succeed(lease)
    assert only(box, started.job_id).type == "job.started"
    assert box.log(plain.job_id) == []


def test_jobs_from_before_webhooks_end_as_they_did(store: JobStore, box: Outbox, engine: Engine) -> None:
    lease = taken_job(store, hooked())
    with engine.begin() as connection:
        connection.execute(update(Job).values(request={"model": "local:tiny", "layers": 4}))
    store.succeed(lease)
    assert box.log(lease.job_id) == []


def test_a_message_is_written_with_its_event_or_not_at_all(store: JobStore, box: Outbox, engine: Engine) -> None:
    lease = taken_job(store, hooked())
    with Session(engine) as session:
        changes.append(session, lease.job_id, [Event("succeeded", {})])
        assert session.scalar(select(WebhookDelivery.id)) is not None
        session.rollback()
    assert box.log(lease.job_id) == []
    store.succeed(lease)
    with pytest.raises(LeaseLost):
        store.fail(lease, ERROR)
    assert only(box, lease.job_id).type == "job.succeeded"


def test_a_retry_has_the_webhook_of_the_job_that_it_repeats(store: JobStore, box: Outbox) -> None:
    first = store.submit(hooked()).id
    store.cancel(first)
    again = store.retry(first).id
    store.cancel(again)
    told = {message.job_id: json.loads(message.body)["data"]["retry_of"] for message in box.take(limit=10)}
    assert told == {first: None, again: first}


# Who sends when


def test_a_message_is_taken_once(store: JobStore, box: Outbox) -> None:
    jobs = {ended(store) for _ in range(12)}
    taken = at_once(*[lambda: box.take(limit=8)] * 6)
    assert sum(map(len, taken)) >= 8
    left = box.take(limit=12)  # who looked for the same ones as a faster sender got none
    assert sorted(message.job_id for messages in (*taken, left) for message in messages) == sorted(jobs)
    assert box.take(limit=10) == []


def test_the_longest_due_comes_first(store: JobStore, box: Outbox) -> None:
    jobs = [ended(store) for _ in range(3)]
    assert [message.job_id for message in box.take(limit=2)] == jobs[:2]
    assert [message.job_id for message in box.take(limit=2)] == jobs[2:]


def test_a_sender_that_dies_leaves_its_message_to_another(store: JobStore, box: Outbox) -> None:
    job_id = ended(store)
    (first,) = box.take(limit=1, seconds=-1)
    second = take_one(box)
    assert (first.attempt, second.attempt) == (1, 2)
    assert (first.id, first.body) == (second.id, second.body)
    box.failed(first, "HTTP 500")
    assert only(box, job_id).answer is None, "it is another's now"
    box.delivered(first, "HTTP 200")
    assert only(box, job_id).status is DeliveryStatus.DELIVERED, "whoever sent it, the receiver has it"
    box.failed(second, "HTTP 500")
    assert (only(box, job_id).answer, only(box, job_id).status) == ("HTTP 200", DeliveryStatus.DELIVERED)


def test_waits_grow_until_the_message_is_given_up(store: JobStore, box: Outbox, engine: Engine) -> None:
    job_id, ids = ended(store), set()
    for wait in SCHEDULE:
        message = take_one(box)
        ids.add(message.id)
        assert box.failed(message, "HTTP 500") is DeliveryStatus.PENDING
        assert wait - 1 <= waits(engine) <= wait * (1 + JITTER)
        assert box.take(limit=10) == []
        make_due(engine)
    assert box.failed(take_one(box), "HTTP 502") is DeliveryStatus.FAILED
    make_due(engine)
    assert box.take(limit=10) == []
    told = only(box, job_id)
    assert (told.status, told.attempts, told.answer, told.next_try_at) == (
        DeliveryStatus.FAILED, TRIES, "HTTP 502", None
    )  # fmt: skip
    assert ids == {told.id}
    assert 24 * 3600 < sum(SCHEDULE) < 48 * 3600


def test_receivers_that_failed_together_are_not_tried_together(store: JobStore, box: Outbox, engine: Engine) -> None:
    for _ in range(10):
        ended(store)
    for message in box.take(limit=10):
        box.failed(message, "HTTP 500", retry_after=1000)
    with engine.connect() as connection:
        due = sorted(connection.scalars(select(WebhookDelivery.next_try_at)))
    assert due[-1] - due[0] > timedelta(seconds=10)


def test_a_receiver_may_ask_for_a_longer_wait_but_not_for_any(store: JobStore, box: Outbox, engine: Engine) -> None:
    ended(store)
    for asked, least, most in ((600, 599, 720), (0, 59, 72), (1e9, 86_399, 86_400 * 1.2)):
        box.failed(take_one(box), "HTTP 429", retry_after=asked)
        assert least <= waits(engine) <= most
        make_due(engine)


def test_a_message_whose_senders_all_die_is_still_given_up(store: JobStore, box: Outbox, engine: Engine) -> None:
    job_id = ended(store)
    for _ in range(TRIES + 2):
        message = take_one(box)
        make_due(engine)
    assert box.failed(message, "no answer in time") is DeliveryStatus.FAILED
    assert only(box, job_id).status is DeliveryStatus.FAILED


def test_a_receiver_that_is_gone_is_told_nothing_more(store: JobStore, box: Outbox) -> None:
    lease, other = taken_job(store, hooked("started", "succeeded")), ended(store)
    store.hand_back(lease, reason="test")
    again = store.take(lease.job_id, worker="w", lease_seconds=60)
    assert again is not None
    first = next(message for message in box.take(limit=10) if message.job_id == lease.job_id)
    box.gone(first)
    store.succeed(again)
    assert [(told.type, told.status, told.answer) for told in box.log(lease.job_id)] == [
        ("job.started", DeliveryStatus.FAILED, GONE)
    ] * 2
    assert only(box, other).status is DeliveryStatus.PENDING


# The log


def test_a_replay_has_its_id_and_all_its_tries_again(store: JobStore, box: Outbox, engine: Engine) -> None:
    job_id = ended(store)
    first = take_one(box)
    box.delivered(first, "HTTP 204")
    before = only(box, job_id)
    assert before.delivered_at is not None
    replayed = box.replay(job_id, before.id)
    assert replayed == only(box, job_id)
    assert (replayed.id, replayed.status, replayed.delivered_at) == (before.id, DeliveryStatus.PENDING, None)
    again = take_one(box)
    assert (again.id, again.body, again.attempt, again.tries_left) == (first.id, first.body, 2, TRIES - 1)
    box.failed(first, "HTTP 500")
    assert only(box, job_id).answer is None, "a sender from before the replay counts for nothing"


def test_a_delivery_of_another_job_is_not_there(store: JobStore, box: Outbox) -> None:
    job_id, other = ended(store), ended(store)
    for wrong in (only(box, other).id, "msg_" + "0" * 26, "", "\0", "msg_" + "\0" * 26, "'"):
        with pytest.raises(DeliveryNotFound):
            box.replay(job_id, wrong)


def test_deleting_a_job_removes_its_messages(store: JobStore, box: Outbox) -> None:
    job_id, other = ended(store), ended(store)
    message = next(message for message in box.take(limit=10) if message.job_id == job_id)
    store.delete(job_id)
    assert box.log(job_id) == []
    box.delivered(message, "HTTP 200")
    box.failed(message, "HTTP 500")
    assert only(box, other).job_id == other


def test_old_messages_go_once_nothing_will_happen_to_them(store: JobStore, box: Outbox, engine: Engine) -> None:
    delivered, pending, young = ended(store), ended(store), ended(store)
    messages = {message.job_id: message for message in box.take(limit=10)}
    for job_id in (delivered, young):
        box.delivered(messages[job_id], "HTTP 200")
    old = update(WebhookDelivery).where(WebhookDelivery.job_id.in_((delivered, pending)))
    with engine.begin() as connection:
        connection.execute(old.values(created_at=now_plus(-(outbox.KEPT_DAYS + 1) * 86_400)))
    assert box.remove_old() == 1
    assert [len(box.log(job_id)) for job_id in (delivered, pending, young)] == [0, 1, 1]
    assert box.remove_old() == 0


def test_looking_for_what_is_due_locks_nothing(store: JobStore, box: Outbox) -> None:
    with statements() as sent:
        assert box.take(limit=10) == []
    assert {statement.split()[0] for statement in sent} <= {"BEGIN", "SELECT"}
