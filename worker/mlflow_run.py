"""A job's run on an MLflow server: found again or made, told what is new, and ended with the model registered.

All of it may be said twice: a metric's point has the time of its event, a run is found by its job's id, and a version
of the registered model by its run.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from shutil import copyfileobj
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from jobs.artifacts import ArtifactStore
from jobs.records import EventRecord, JobRecord
from jobs.states import JobStatus
from worker import mlflow_entries as entries

_SHOWN = (".svg", ".png", ".json", ".md")
_LARGEST_SHOWN = 5_000_000
"""Bytes of a figure or a text that is copied to MLflow; weights and tokenizers never are."""
_NOT_SHOWN = frozenset(("tokenizer.json", "vocab.json", "model.safetensors.index.json"))
_BATCH = 500
_EXISTS = ErrorCode.Name(RESOURCE_ALREADY_EXISTS)


class MlflowRun:
    """The run of one job. Each method raises what MLflow's client raises: MlflowException, mostly.

    Args:
        experiment: is made if the server has none of this name.
    """

    def __init__(self, client: MlflowClient, experiment: str, job: JobRecord) -> None:
        self._client = client
        experiment_id = _experiment(client, experiment)
        found = client.search_runs([experiment_id], f"tags.`{entries.JOB_ID}` = '{job.id}'", max_results=1)
        if found:
            self.id: str = found[0].info.run_id
        else:
            started = entries.milliseconds(job.started_at or job.created_at)
            run = client.create_run(experiment_id, started, {entries.JOB_ID: job.id}, run_name=job.id)
            self.id = run.info.run_id
        client.log_batch(self.id, params=[Param(*item) for item in entries.parameters(job).items()])

    def tell(self, job: JobRecord, events: Sequence[EventRecord]) -> None:
        """Add what these events say, and how the job is."""
        self._log(point for event in events for point in entries.points(event))
        self._client.log_batch(self.id, tags=[RunTag(*item) for item in entries.tags(job).items()])

    def end(self, job: JobRecord, store: ArtifactStore, source: str) -> None:
        """Add the results of a job that has ended, register its model if there is one, and end the run, last of all.

        Args:
            source: where the model is.
        """
        self._log(entries.results(job))
        if job.status is JobStatus.SUCCEEDED:
            self._show(job, store)
            self._register(job, source)
        finished = entries.milliseconds(job.finished_at or job.created_at)
        self._client.set_terminated(self.id, entries.STATUSES[job.status], finished)

    @property
    def has_ended(self) -> bool:
        """Whether all of the job has been told."""
        return bool(RunStatus.is_terminated(RunStatus.from_string(self._client.get_run(self.id).info.status)))

    def _log(self, points: Iterable[entries.Point]) -> None:
        metrics = (Metric(point.name, point.value, point.time, point.step) for point in points)
        for some in _batches(metrics):
            self._client.log_batch(self.id, metrics=some)

    def _show(self, job: JobRecord, store: ArtifactStore) -> None:
        """Copy figures, the card and the manifest."""
        with tempfile.TemporaryDirectory(prefix="flattengpt-mlflow-") as folder:
            for artifact in job.artifacts:
                path = artifact["path"]
                if path.endswith(_SHOWN) and path not in _NOT_SHOWN and artifact["size"] <= _LARGEST_SHOWN:
                    copy = Path(folder, path)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with store.open(job.id, path) as reader, copy.open("wb") as writer:
                        copyfileobj(reader, writer)
            self._client.log_artifacts(self.id, folder)

    def _register(self, job: JobRecord, source: str) -> None:
        name = entries.model_name(job)
        with _already_there():
            self._client.create_registered_model(name, description="Made shallower by FlattenGPT, a version a job.")
        if not self._client.search_model_versions(f"run_id = '{self.id}'", max_results=1):
            how = f"`flattengpt download {job.id} --out {name}` fetches it, each file checked."
            self._client.create_model_version(
                name, source, self.id, entries.version_tags(job), description=how, await_creation_for=0
            )


def source_of(job_id: str, artifacts_url: str) -> str:
    """Where MLflow's clients find the model: in the bucket, or else by the job, which they cannot load by themselves.

    MLflow refuses what lies on some machine's disk, and by default every http:// address.
    """
    parts = urlsplit(artifacts_url)
    if parts.scheme in ("", "file", "local", "memory") or parts.username or parts.query:
        return f"flattengpt:/jobs/{job_id}"
    return f"{artifacts_url.rstrip('/')}/{job_id}"


def _experiment(client: MlflowClient, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        with _already_there():  # another worker may have made it just now
            return str(client.create_experiment(name))
        experiment = client.get_experiment_by_name(name)
    return str(experiment.experiment_id)


@contextmanager
def _already_there() -> Iterator[None]:
    """Bears with the refusal to make what is there."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != _EXISTS:
            raise


def _batches(metrics: Iterable[Metric]) -> Iterator[list[Metric]]:
    iterator = iter(metrics)
    while some := list(islice(iterator, _BATCH)):
        yield some
