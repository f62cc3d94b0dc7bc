"""The child process of one attempt: `python -m worker.run JOB_ID ATTEMPT`. The only part that imports torch.

Loads the request, fetches the model, runs the pipeline, stores the artifacts, publishes, and records the end. Only
fetching and publishing see the Hub's token: it is taken out of the environment before torch and its like come in.
"""

import errno
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from flattengpt_core.checkpoint import HubModel, inspect, resolve
from flattengpt_core.errors import FlattenGPTError
from flattengpt_core.options import Calibration, Evaluation, Recovery
from jobs import tracing
from jobs.artifacts import ArtifactStore, as_json
from jobs.database import make_engine
from jobs.errors import LeaseLost
from jobs.logs import configure_logs
from jobs.records import Lease
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.states import PUBLISHING
from jobs.store import JobStore
from worker.child_process import die_with_parent
from worker.exit_codes import ExitCode
from worker.places import result_dir, state_dir
from worker.reporter import Reporter, StopRequested
from worker.stage_spans import StageSpans

log = structlog.get_logger()


@dataclass(frozen=True)
class Attempt:
    """What one attempt works with."""

    lease: Lease
    spec: JobSpec
    settings: Settings
    store: JobStore
    reporter: Reporter


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
            run(Attempt(lease, spec, settings, store, Reporter(store, lease, stop.is_set, on_stage=spans.enter)))
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
    model = fetch(attempt)
    goal = spec.goal(inspect(model).num_layers)
    from flattengpt_core.pipeline import compress  # imports torch, which takes seconds

    result = result_dir(settings, attempt.lease)
    metrics = compress(
        model,
        result,
        goal=goal,
        method=spec.method,
        calibration=Calibration(**spec.calibration.model_dump()),
        recovery=Recovery(**spec.recovery.model_dump()),
        evaluation=Evaluation(**spec.evaluation.model_dump()),
        device="auto",
        dtype=spec.dtype,
        progress=attempt.reporter,
        request=spec.as_request(),
        base_model=spec.model.removeprefix("local:"),
        work=state_dir(settings, attempt.lease),
    )
    attempt.reporter.check()  # a late attempt must not replace another's artifacts
    artifacts = ArtifactStore(settings.artifacts).put_folder(attempt.lease.job_id, result)
    attempt.store.store_result(attempt.lease, metrics=metrics, artifacts=as_json(artifacts))
    attempt.store.succeed(attempt.lease, published_url=publish_result(attempt, result))


def fetch(attempt: Attempt) -> Path:
    """The model as a folder or file of this machine, downloaded at its pinned revision if it is the Hub's."""
    located = resolve(attempt.spec.model, attempt.settings.models_dir)
    if not isinstance(located, HubModel):
        return located.path
    from flattengpt_core.hub import fetch_model

    return fetch_model(
        located.repo_id,
        revision=attempt.spec.revision,
        token=attempt.settings.hf_token.get_secret_value() if attempt.settings.hf_token else None,
        endpoint=attempt.settings.hf_endpoint,
        cache_dir=attempt.settings.data_dir.absolute() / "hub",
    )


def publish_result(attempt: Attempt, result: Path) -> str | None:
    """Upload the result where the request says; None if it says nothing. Raises PublishFailed."""
    if attempt.spec.publish is None:
        return None
    from worker.publish import publish

    attempt.reporter.stage(PUBLISHING)
    return publish(
        result,
        repo_id=attempt.spec.publish.repo_id,
        private=attempt.spec.publish.private,
        token=attempt.settings.hf_token,
        endpoint=attempt.settings.hf_endpoint,
        job_id=attempt.lease.job_id,
    )


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
        return FlattenGPTError(
            "The worker's disk is full: make room for its data folder, then submit the job again."
        ).as_dict()
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
