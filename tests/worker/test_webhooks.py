"""Messages on their way: signed, sent at least once, tried again, and given up; by however many senders."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import Engine, text, update

from jobs.clock import now_plus
from jobs.outbox import DeliveryStatus, Outbox
from jobs.sealing import Sealer
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from jobs.tables import WebhookDelivery
from jobs.webhook_secrets import WebhookSecrets
from tests.jobs.at_once import at_once
from tests.jobs.test_outbox import make_due, only, waits
from tests.receiver import Receiver, Reply, receiving
from worker.webhooks import SENDERS, Deliverer, delivering, make_deliverer


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """As elsewhere, and receivers on this machine are allowed."""
    return settings.model_copy(update={"webhook_allow_private": True, "webhook_allow_http": True})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def box(engine: Engine) -> Outbox:
    return Outbox(engine)


@pytest.fixture
def deliverer(settings: Settings, engine: Engine) -> Deliverer:
    return make_deliverer(settings, engine)


@pytest.fixture
def secrets(settings: Settings, engine: Engine) -> WebhookSecrets:
    return WebhookSecrets(engine, Sealer(settings))


def ended(store: JobStore, url: str) -> str:
    """The id of a job that was cancelled, which its webhook is to be told of."""
    job_id = store.submit(JobSpec.model_validate({"model": "local:tiny", "layers": 4, "webhook": {"url": url}})).id
    store.cancel(job_id)
    return job_id


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def test_a_receiver_can_verify_what_it_gets(
    store: JobStore, box: Outbox, deliverer: Deliverer, secrets: WebhookSecrets, receiver: Receiver
) -> None:
    job_id = ended(store.of("mine"), receiver.url)
    assert deliverer.deliver_due() == 1
    (seen,) = receiver.seen
    told = seen.verified(secrets.of("mine").secret.get_secret_value())
    assert (told["type"], told["data"]["id"], told["data"]["status"]) == ("job.cancelled", job_id, "cancelled")
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["webhook-id"] == only(box, job_id).id
    with pytest.raises(Exception, match="No matching signature"):
        seen.verified(secrets.of("theirs").secret.get_secret_value())
    note = only(box, job_id)
    assert (note.status, note.attempts, note.answer, note.next_try_at) == (
        DeliveryStatus.DELIVERED, 1, "HTTP 204", None
    )  # fmt: skip
    assert note.delivered_at is not None
    assert deliverer.deliver_due() == 0


def test_during_a_rotation_both_secrets_verify(
    store: JobStore, deliverer: Deliverer, secrets: WebhookSecrets, receiver: Receiver
) -> None:
    old = secrets.of("").secret
    ended(store, receiver.url)
    new = secrets.rotate("").secret
    deliverer.deliver_due()
    for secret in (old, new):
        assert receiver.seen[0].verified(secret.get_secret_value())


def test_what_fails_is_tried_again_under_the_same_id(
    store: JobStore, box: Outbox, deliverer: Deliverer, secrets: WebhookSecrets, receiver: Receiver, engine: Engine
) -> None:
    job_id = ended(store, receiver.url)
    for status in (500, 404, 302):
        receiver.replies = [Reply(status, {"location": receiver.url})]
        deliverer.deliver_due()
        note = only(box, job_id)
        assert (note.status, note.answer and note.answer[:8]) == (DeliveryStatus.PENDING, f"HTTP {status}")
        assert deliverer.deliver_due() == 0
        make_due(engine)
    deliverer.deliver_due()
    assert (only(box, job_id).status, only(box, job_id).attempts) == (DeliveryStatus.DELIVERED, 4)
    assert len({(seen.headers["webhook-id"], seen.body) for seen in receiver.seen}) == 1
    assert len(receiver.seen) == 4
    for seen in receiver.seen:
        seen.verified(secrets.of("").secret.get_secret_value())


@pytest.mark.parametrize(("status", "least", "most"), [(429, 300, 400), (503, 300, 400), (500, 4, 7)])
def test_only_a_receiver_that_is_busy_is_waited_for(
    store: JobStore, deliverer: Deliverer, receiver: Receiver, engine: Engine, status: int, least: int, most: int
) -> None:
    ended(store, receiver.url)
    receiver.replies = [Reply(status, {"retry-after": "301"})]
    deliverer.deliver_due()
    assert least <= waits(engine) <= most


def test_a_receiver_that_is_gone_is_left_alone(
    store: JobStore, box: Outbox, deliverer: Deliverer, receiver: Receiver, engine: Engine
) -> None:
    job_id = ended(store, receiver.url)
    receiver.replies = [Reply(410)]
    deliverer.deliver_due()
    make_due(engine)
    assert deliverer.deliver_due() == 0
    assert only(box, job_id).status is DeliveryStatus.FAILED
    assert len(receiver.seen) == 1
    box.replay(job_id, only(box, job_id).id)
    deliverer.deliver_due()
    assert only(box, job_id).status is DeliveryStatus.DELIVERED


def test_several_senders_at_once_send_each_message_once(
    store: JobStore, box: Outbox, settings: Settings, engine: Engine, receiver: Receiver
) -> None:
    jobs = [ended(store, receiver.url) for _ in range(6)]
    receiver.default = Reply(seconds=0.1)
    senders = [make_deliverer(settings, engine) for _ in range(3)]
    at_once(*[sender.deliver_due for sender in senders])
    while senders[0].deliver_due():
        pass
    assert sorted(seen.headers["webhook-id"] for seen in receiver.seen) == sorted(only(box, job).id for job in jobs)


def test_a_sender_that_dies_after_it_took_a_message_loses_none(
    store: JobStore, box: Outbox, deliverer: Deliverer, receiver: Receiver, engine: Engine
) -> None:
    job_id = ended(store, receiver.url)
    assert len(box.take(limit=1)) == 1  # and nothing more is heard of who took it
    assert deliverer.deliver_due() == 0
    make_due(engine)
    assert deliverer.deliver_due() == 1
    assert (only(box, job_id).status, only(box, job_id).attempts) == (DeliveryStatus.DELIVERED, 2)


def test_a_target_inside_is_not_sent_to(
    store: JobStore, box: Outbox, settings: Settings, engine: Engine, receiver: Receiver
) -> None:
    strict = settings.model_copy(update={"webhook_allow_private": False})
    jobs = [ended(store, receiver.url), ended(store, receiver.url.replace("127.0.0.1", "localhost"))]
    make_deliverer(strict, engine).deliver_due()
    assert [only(box, job_id).answer for job_id in jobs] == ["the URL is not allowed"] * 2
    assert receiver.seen == []


def test_a_secret_that_cannot_be_opened_sends_nothing_unsigned(
    store: JobStore, box: Outbox, settings: Settings, engine: Engine, secrets: WebhookSecrets, receiver: Receiver
) -> None:
    secrets.of("")
    job_id = ended(store, receiver.url)
    other = settings.model_copy(update={"broker_url": "redis://host", "secret_keys": SecretStr("A" * 43 + "=")})
    make_deliverer(other, engine).deliver_due()
    assert (only(box, job_id).status, only(box, job_id).answer) == (
        DeliveryStatus.PENDING, "the signing secret cannot be opened"
    )  # fmt: skip
    assert receiver.seen == []


def test_the_log_names_the_host_and_nothing_that_is_secret(
    store: JobStore, deliverer: Deliverer, secrets: WebhookSecrets, receiver: Receiver
) -> None:
    job_id = ended(store, receiver.url)
    receiver.replies = [Reply(500)]
    with structlog.testing.capture_logs() as lines:
        deliverer.deliver_due()
    (line,) = [line for line in lines if line.get("job_id") == job_id]
    assert (line["event"], line["host"], line["answer"]) == ("webhook not delivered", "127.0.0.1", "HTTP 500")
    said = repr(lines) + repr(store.events(job_id))
    assert "in-the-query" not in said
    assert secrets.of("").secret.get_secret_value() not in said


# The loop


def test_a_slow_receiver_holds_no_other_up(
    store: JobStore, box: Outbox, deliverer: Deliverer, receiver: Receiver
) -> None:
    with receiving() as slow:
        slow.default = Reply(seconds=4)
        stuck = [ended(store, slow.url) for _ in range(SENDERS - 2)]
        quick = [ended(store, receiver.url) for _ in range(4)]
        stop = threading.Event()
        thread = threading.Thread(target=deliverer.deliver_until, args=(stop,), kwargs={"poll_seconds": 0.02})
        thread.start()
        try:
            wait_for(lambda: len(receiver.seen) == len(quick))
            assert [only(box, job_id).status for job_id in stuck] == [DeliveryStatus.PENDING] * len(stuck)
        finally:
            stop.set()
            thread.join(30)
    assert not thread.is_alive()
    assert {only(box, job_id).status for job_id in (*stuck, *quick)} == {DeliveryStatus.DELIVERED}, "none is cut off"


def test_delivering_goes_on_after_a_database_that_failed(
    store: JobStore, deliverer: Deliverer, receiver: Receiver, engine: Engine
) -> None:
    ended(store, receiver.url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE webhook_delivery RENAME TO away"))
    stop = threading.Event()
    thread = threading.Thread(target=deliverer.deliver_until, args=(stop,), kwargs={"poll_seconds": 0.02})
    with structlog.testing.capture_logs() as lines:
        thread.start()
        try:
            wait_for(lambda: len(lines) >= 2)
            with engine.begin() as connection:
                connection.execute(text("ALTER TABLE away RENAME TO webhook_delivery"))
            wait_for(lambda: len(receiver.seen) == 1)
        finally:
            stop.set()
            thread.join(30)
    assert lines[0]["event"] == "webhooks cannot be read"
    assert "exc_info" not in lines[0]


def test_a_service_delivers_while_it_runs_and_forgets_what_is_old(
    store: JobStore, box: Outbox, settings: Settings, engine: Engine, receiver: Receiver
) -> None:
    old = ended(store, receiver.url)
    for message in box.take(limit=1):
        box.delivered(message, "HTTP 200")
    with engine.begin() as connection:
        connection.execute(update(WebhookDelivery).values(created_at=now_plus(-90 * 86_400)))
    with delivering(settings, engine):
        ended(store, receiver.url)
        wait_for(lambda: len(receiver.seen) == 1)
        wait_for(lambda: box.log(old) == [])
    threads = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("webhook") for name in threads)


def test_a_service_without_keys_says_that_it_sends_nothing(
    store: JobStore, box: Outbox, settings: Settings, engine: Engine, receiver: Receiver
) -> None:
    keyless = settings.model_copy(update={"broker_url": "redis://host"})
    job_id = ended(store, receiver.url)
    with structlog.testing.capture_logs() as lines, delivering(keyless, engine):
        pass
    assert ["FLATTENGPT_SECRET_KEYS" in line["event"] for line in lines] == [True]
    assert only(box, job_id).attempts == 0
