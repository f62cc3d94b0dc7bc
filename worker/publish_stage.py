"""The stage of an attempt that puts its result where the request says, and what can be told of that before the work."""

from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from flattengpt_core.hub import REQUESTS_TOKEN, WORKERS_TOKEN
from flattengpt_core.licence import licence_of, refuse_name
from jobs import publish_target
from jobs.errors import LeaseLost, PublishConflict
from jobs.records import Event
from jobs.spec import PublishSpec
from jobs.states import PUBLISHING
from worker.attempt import Attempt
from worker.interruptible import LastStep, interruptibly
from worker.publish import publish as publish_on_hub
from worker.publish_files import Place, check_place, publish_files
from worker.reporter import StopRequested

COMMIT_SECONDS = 5
"""How long a stop waits for the Hub's answer to a commit that is under way."""

log = structlog.get_logger()


def refuse_place(attempt: Attempt, publish: PublishSpec, model: Path) -> None:
    """Refuse before the work what would be refused after it, as far as it can be told by then.

    Raises:
        InvalidRequest, PublishConflict, MissingExtra: the result could not be put there.
    """
    if publish.repo_id is not None and not publish.private:
        refuse_name(licence_of(model), publish.repo_id.rpartition("/")[2])
    if publish.url is not None:
        place = Place(publish.url, publish_target.root_of(publish.url, attempt.settings))
        check = partial(check_place, place, job_id=attempt.lease.job_id, overwrite=publish.overwrite)
        try:
            interruptibly(check, attempt.reporter.look)
        except (PublishConflict, StopRequested, LeaseLost):
            raise
        except Exception as error:  # each store's client has its own; all may be well later
            log.warning("the place to publish at cannot be looked at", error=type(error).__name__)


def publish_result(attempt: Attempt, result: Path) -> str | None:
    """Put the result where the request says; None if it says nothing. Raises PublishFailed."""
    if attempt.spec.publish is None:
        return None
    attempt.reporter.stage(PUBLISHING)
    news: deque[tuple[int, int]] = deque(maxlen=1)
    commit = LastStep()

    def look() -> None:
        attempt.reporter.look()
        if news and attempt.reporter.due:
            attempt.reporter.step(*news.popleft())

    upload = partial(
        upload_of(attempt, attempt.spec.publish),
        result,
        job_id=attempt.lease.job_id,
        overwrite=attempt.spec.publish.overwrite,
        progress=lambda done, total: news.append((done, total)),
        commit=commit,
    )
    patience = min(COMMIT_SECONDS, attempt.settings.stop_grace_seconds / 2)
    try:
        return interruptibly(upload, look, last_step=commit, patience_seconds=patience)
    except StopRequested:
        if commit.begun:
            where = attempt.spec.publish.model_dump(include={"repo_id", "url"}, exclude_none=True)
            unanswered = Event("commit_unanswered", where)
            attempt.store.record(attempt.lease, events=[unanswered])
        raise


def upload_of(attempt: Attempt, publish: PublishSpec) -> Callable[..., str]:
    """What puts a result where the request says, but for what both ways take."""
    if publish.url is not None:
        return partial(publish_files, place=Place(publish.url, publish_target.root_of(publish.url, attempt.settings)))
    assert publish.repo_id is not None  # a request names either
    return partial(
        publish_on_hub,
        repo_id=publish.repo_id,
        private=publish.private,
        token=attempt.settings.hf_token,
        token_name=REQUESTS_TOKEN if attempt.job.own_hub_token else WORKERS_TOKEN,
        endpoint=attempt.settings.hf_endpoint,
        timeout_seconds=attempt.settings.hub_timeout_seconds,
    )
