"""The child process of one attempt: `python -m worker.run JOB_ID ATTEMPT`. The only part that imports torch.

Loads the request, fetches the model, makes sure that it fits here, runs the pipeline, stores the artifacts, publishes,
and records the end. Only fetching and publishing see the Hub's token: it is taken out of the environment before torch
and its like come in.
"""

import errno
import logging
import os
import shutil
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import structlog

from flattengpt_core.checkpoint import HubModel, inspect, resolve
from flattengpt_core.errors import FlattenGPTError, InvalidRequest, ModelNotFound
from flattengpt_core.hub import REQUESTS_TOKEN, fetch_model
from flattengpt_core.options import Calibration, Evaluation, Recovery
from flattengpt_core.progress import Progress
from jobs import tracing
from jobs.artifacts import Artifact, ArtifactStore, as_json
from jobs.database import make_engine
from jobs.errors import LeaseLost, NotEnoughDisk
from jobs.logs import configure_logs
from jobs.records import Lease
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from worker.attempt import Attempt
from worker.child_process import die_with_parent
from worker.exit_codes import ExitCode
from worker.interruptible import interruptibly
from worker.places import adopted, download_dir, result_dir, state_dir
from worker.publish_stage import publish_result, refuse_place
from worker.reporter import Reporter, StopRequested
from worker.restore import restore
from worker.room import check_room
from worker.saved_progress import SavedProgress
from worker.stage_spans import StageSpans
from worker.state_store import StateStore

log = structlog.get_logger()


def main(job_id: str, attempt: int) -> ExitCode:
    """Run one attempt to its end and say what the parent should know."""
    die_with_parent()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings = Settings()
    configure_logs(settings, job_id=job_id, attempt=attempt)
    os.environ.pop("HF_TOKEN", None)
    os.environ["TQDM_DISABLE"] = "1"  # libraries' progress bars are no lines of a log
    lease, store = Lease(job_id, attempt), JobStore(make_engine(settings.database))
    tracing.start(settings, "worker")
    try:
        job = store.get(job_id)
        spec = JobSpec.model_validate(job.request)
        if job.commit is not None:
            spec = spec.model_copy(update={"revision": job.commit})
        with StageSpans(lease, settings.traceparent) as spans:
            reporter = Reporter(store, lease, stop.is_set, on_stage=spans.enter)
            run(Attempt(lease, spec, settings, store, reporter, job))
        return ExitCode.DONE
    except StopRequested:
        log.info("stopped between two steps, as asked")
        return ExitCode.STOPPED
    except LeaseLost as error:
        log.warning(error.message)
        return ExitCode.LEASE_LOST
    except Exception as error:
        code = _record_failure(store, lease, error)
        with suppress(OSError):  # the log may be on the disk that is full
            log.exception("the attempt failed")
        return code
    finally:
        tracing.stop()


def run(attempt: Attempt) -> None:
    """Compress, store, publish, succeed. Raises what went wrong."""
    spec, settings = attempt.spec, attempt.settings
    attempt.reporter.stage("loading")
    if (stored := stored_result(attempt)) is not None:
        succeed(attempt, stored)
        return
    progress = saved_progress(attempt)
    model = fetch(attempt)
    info = inspect(model)
    if spec.publish is not None:
        refuse_place(attempt, spec.publish, model)
    check_room(settings, attempt.lease, spec, info)
    result = result_dir(settings, attempt.lease)
    try:
        metrics = compressed(attempt, model, info.num_layers, result, progress)
    except InvalidRequest as error:
        if error.field != "work":
            raise
        # The request is the job's own, so the model's files, the text or this program changed since the last attempt.
        log.warning("the state of the last attempt is dropped, and this one starts afresh", reason=error.message)
        shutil.rmtree(state_dir(settings, attempt.lease))
        metrics = compressed(attempt, model, info.num_layers, result, progress)
    attempt.reporter.check()  # a late attempt must not replace another's artifacts
    put = partial(ArtifactStore(settings.artifacts).put_folder, attempt.lease.job_id, result)
    artifacts = interruptibly(put, attempt.reporter.look)
    attempt.store.store_result(attempt.lease, metrics=metrics, artifacts=as_json(artifacts))
    succeed(attempt, result)


def saved_progress(attempt: Attempt) -> Progress:
    """Fetch what another worker's attempt has finished, if there is a place for that; how the run reports from there.

    A place that does not answer costs time and no job.
    """
    settings, lease, reporter = attempt.settings, attempt.lease, attempt.reporter
    if not settings.state_url:
        return reporter
    store, folder = StateStore(settings.state_url), state_dir(settings, lease)

    def restored() -> int | None:
        try:
            return store.restore(lease, folder, after=adopted(settings, lease))
        except Exception as error:  # each store's client has errors of its own
            log.warning("the state of the last attempt cannot be had", error=type(error).__name__)
            return None

    if (earlier := interruptibly(restored, reporter.look)) is not None:
        reporter.event("state_restored", from_attempt=earlier)
    return SavedProgress(
        reporter,
        partial(store.save, lease, folder),
        interval_seconds=settings.state_seconds,
        patience_seconds=settings.stop_grace_seconds / 2,
    )


def compressed(attempt: Attempt, model: Path, num_layers: int, result: Path, progress: Progress) -> dict[str, Any]:
    """Run the pipeline into the new folder `result`; the metrics.

    Raises:
        InvalidRequest: among others with the field `work`, if the attempt's state is of another model.
    """
    from flattengpt_core.pipeline import compress  # imports torch, which takes seconds

    spec = attempt.spec
    return compress(
        model,
        result,
        goal=spec.goal(num_layers),
        method=spec.method,
        calibration=Calibration(**spec.calibration.model_dump()),
        recovery=Recovery(**spec.recovery.model_dump()),
        evaluation=Evaluation(**spec.evaluation.model_dump()),
        device="auto",
        dtype=spec.dtype,
        progress=progress,
        request=spec.as_published(),
        base_model=spec.model.removeprefix("local:"),
        texts_dir=attempt.settings.texts_dir,
        work=state_dir(attempt.settings, attempt.lease),
    )


def stored_result(attempt: Attempt) -> Path | None:
    """The folder with the result that an earlier attempt has stored; None, and no folder, if none has."""
    job, folder = attempt.job, result_dir(attempt.settings, attempt.lease)
    artifacts = [Artifact(**entry) for entry in job.artifacts] if job.metrics is not None else []
    found = interruptibly(
        partial(restore, ArtifactStore(attempt.settings.artifacts), job.id, artifacts, folder), attempt.reporter.look
    )
    if found is None:
        return None
    attempt.reporter.event("restored", source=found)
    return folder


def succeed(attempt: Attempt, result: Path) -> None:
    """Publish the stored result and end the job well. Raises PublishFailed."""
    attempt.store.succeed(attempt.lease, published_url=publish_result(attempt, result))


def fetch(attempt: Attempt) -> Path:
    """The model as a folder or file of this machine, downloaded at its pinned revision if it is the Hub's."""
    located = resolve(attempt.spec.model, attempt.settings.models_dir)
    if not isinstance(located, HubModel):
        return located.path
    token = attempt.settings.hf_token.get_secret_value() if attempt.settings.hf_token else None
    from_hub = partial(
        fetch_model, located.repo_id, revision=attempt.spec.revision, endpoint=attempt.settings.hf_endpoint
    )
    shared = attempt.settings.data_dir.absolute() / "hub"
    if not attempt.job.own_hub_token:
        return from_hub(token=token, cache_dir=shared)
    try:
        return from_hub(token=None, cache_dir=shared)
    except ModelNotFound:
        # What only this token may read must not be where other jobs find it.
        own = download_dir(attempt.settings, attempt.lease)
        return from_hub(token=token, cache_dir=own, token_name=REQUESTS_TOKEN)


def _record_failure(store: JobStore, lease: Lease, error: Exception) -> ExitCode:
    """End the job with a readable error; the traceback stays in the log."""
    try:
        store.fail(lease, _described(error))
    except LeaseLost:
        return ExitCode.LEASE_LOST
    return ExitCode.FAILED


def _described(error: Exception) -> dict[str, Any]:
    if isinstance(error, FlattenGPTError):
        return error.as_dict()
    if _is_full_disk(error):
        return NotEnoughDisk("The worker's disk is full: make room for its data folder, then retry the job.").as_dict()
    if isinstance(error, OSError) and error.errno is not None:
        return FlattenGPTError(f"The worker's machine refused: {error.strerror} ({error.filename}).").as_dict()
    return FlattenGPTError(
        f"The compression stopped on an unexpected error ({type(error).__name__}); the worker's log has the details."
    ).as_dict()


def _is_full_disk(error: BaseException) -> bool:
    """Whether this is it, at the root or on the way; libraries written in Rust tell the number in words alone."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    cause = error.__cause__ or error.__context__
    return full or f"(os error {errno.ENOSPC})" in str(error) or (cause is not None and _is_full_disk(cause))


def leave(code: ExitCode) -> NoReturn:
    """End the process, at once if a piece of work may have been left behind in a thread."""
    if code in (ExitCode.STOPPED, ExitCode.LEASE_LOST):
        with suppress(OSError):  # the log may be on the disk that is full
            logging.shutdown()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1], int(sys.argv[2])))
