"""Delivers the messages of the outbox, beside the sweeper, a few at a time: a slow receiver holds nobody else up."""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Protocol
from urllib.parse import urlsplit

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from jobs.errors import SealingUnavailable
from jobs.outbox import DeliveryStatus, Message, Outbox
from jobs.sealing import Sealer
from jobs.settings import Settings
from jobs.store import patiently
from jobs.webhook_secrets import WebhookSecrets
from jobs.webhook_target import TargetRules
from worker.guarded_post import Answer, GuardedPost, NotSent

SENDERS = 16
POLL_SECONDS = 1.0
TIDY_SECONDS = 600.0

_GONE = 410
_BUSY = (429, 503)

log = structlog.get_logger()


class Post(Protocol):
    """Something that posts; raises NotSent."""

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer: ...


class Deliverer:
    """Sends messages, and notes what became of each."""

    def __init__(self, outbox: Outbox, secrets: WebhookSecrets, post: Post) -> None:
        self._outbox, self._secrets, self._post = outbox, secrets, post

    def deliver_due(self, *, limit: int = SENDERS) -> int:
        """Take messages that are due and send them, one after another; how many."""
        messages = self._outbox.take(limit=limit)
        for message in messages:
            self.deliver(message)
        return len(messages)

    def deliver(self, message: Message) -> None:
        """Send a message that was taken, once, and note how that went."""
        try:
            answer = self._send(message)
        except (NotSent, SealingUnavailable) as error:
            reason = error.reason if isinstance(error, NotSent) else "the signing secret cannot be opened"
            self._failed(message, reason)
            return
        if 200 <= answer.status < 300:
            self._delivered(message, f"HTTP {answer.status}")
        elif answer.status == _GONE:
            self._gone(message)
        elif 300 <= answer.status < 400:
            self._failed(message, f"HTTP {answer.status}: redirects are not followed")
        else:
            wait = answer.retry_after if answer.status in _BUSY else 0
            self._failed(message, f"HTTP {answer.status}", retry_after=wait)

    def deliver_until(self, stop: threading.Event, *, poll_seconds: float = POLL_SECONDS) -> None:
        """Deliver what is due until `stop` is set; what is being sent then is waited for."""
        running: set[Future[None]] = set()
        tidy_at = time.monotonic()
        with ThreadPoolExecutor(SENDERS, thread_name_prefix="webhook") as pool:
            while not stop.is_set():
                running = {future for future in running if not future.done()}
                running |= {pool.submit(self._deliver, message) for message in self._taken(SENDERS - len(running))}
                if time.monotonic() >= tidy_at:
                    self._tidy()
                    tidy_at = time.monotonic() + TIDY_SECONDS
                stop.wait(poll_seconds)

    def _tidy(self) -> None:
        with suppress(SQLAlchemyError):  # the next time does it
            self._outbox.remove_old()

    def _taken(self, limit: int) -> list[Message]:
        """What is due, if the database answers."""
        try:
            return self._outbox.take(limit=limit) if limit else []
        except SQLAlchemyError as error:
            log.error("webhooks cannot be read", error=type(error).__name__)
        except Exception:  # a thread that ends would leave all messages unsent
            log.exception("webhooks cannot be read")
        return []

    def _deliver(self, message: Message) -> None:
        """As `deliver`, for a thread that nobody looks at: a message whose end is not noted is due again."""
        try:
            self.deliver(message)
        except SQLAlchemyError as error:
            log.error("webhook delivery not noted", delivery=message.id, error=type(error).__name__)
        except Exception:
            log.exception("webhook delivery failed", delivery=message.id)

    def _send(self, message: Message) -> Answer:
        headers = {
            "content-type": "application/json",
            "user-agent": "flattengpt-webhooks",
            "webhook-id": message.id,
            "webhook-timestamp": str(int(message.sent_at.timestamp())),
            "webhook-signature": self._secrets.sign(message.owner, message.id, message.sent_at, message.body),
        }
        return self._post(message.url, headers, message.body.encode())

    @patiently
    def _delivered(self, message: Message, answer: str) -> None:
        self._outbox.delivered(message, answer)
        log.info("webhook delivered", **_about(message), answer=answer)

    @patiently
    def _failed(self, message: Message, answer: str, *, retry_after: float = 0) -> None:
        status = self._outbox.failed(message, answer, retry_after=retry_after)
        given_up = status is DeliveryStatus.FAILED
        log.warning("webhook given up" if given_up else "webhook not delivered", **_about(message), answer=answer)

    @patiently
    def _gone(self, message: Message) -> None:
        self._outbox.gone(message)
        log.info("webhook refused for good", **_about(message))


def make_deliverer(settings: Settings, engine: Engine) -> Deliverer:
    """What sends these settings' messages. Raises SealingUnavailable if a key is malformed."""
    post = GuardedPost(TargetRules.of(settings))
    return Deliverer(Outbox(engine), WebhookSecrets(engine, Sealer(settings)), post)


@contextmanager
def delivering(settings: Settings, engine: Engine) -> Iterator[None]:
    """Deliver in a thread while the block runs, if the service has keys for secrets. Raises SealingUnavailable."""
    if not Sealer(settings).available:
        log.info("no webhooks are sent: FLATTENGPT_SECRET_KEYS is not set")
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=make_deliverer(settings, engine).deliver_until, args=(stop,), name="webhooks")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _about(message: Message) -> dict[str, str | int]:
    """What may be said in the log: of the URL only the host, since the rest may hold a token."""
    return {
        "job_id": message.job_id,
        "delivery": message.id,
        "host": urlsplit(message.url).hostname or "",
        "try": message.attempt,
    }
