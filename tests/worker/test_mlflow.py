"""What a real MLflow server knows of jobs, and what becomes of a job whose server is away."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from pydantic import SecretStr
from typer.testing import CliRunner

from cli.main import app
from jobs.artifacts import ArtifactStore, as_json
from jobs.records import Event, Lease
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.states import JobStatus
from jobs.store import JobStore
from tests.mlflow_server import free_port, late_door, mlflow_server
from tests.processes import wait_until
from tests.worker.conftest import SPEC, Workers, on_sqlite, stand_in
from tests.worker.test_parent import of_type
from worker import track
from worker.mlflow_run import source_of
from worker.parent import child_environment

__all__ = ["mlflow_server"]

NOWHERE = "http://someone:mlflow-password@127.0.0.1:9"
METRICS = {
    "dense": {"layers": 6, "perplexity": {"python-docs": 20.0}},
    "compressed": {"layers": 4, "perplexity": {"python-docs": 30.0}},
    "compress_seconds": 2.5,
    "groups": [[0, 1], [2]],
}

pytestmark = on_sqlite


@pytest.fixture
def settings(settings: Settings, mlflow_server: str, tmp_path: Path) -> Settings:
    """Settings that lead to the server, and to an experiment of the test's own."""
    return settings.model_copy(
        update={"mlflow_tracking_uri": SecretStr(mlflow_server), "mlflow_experiment": tmp_path.name}
    )


@pytest.fixture(autouse=True)
def _same_settings_for_children(
    settings: Settings, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    for name, value in {
        **environment,
        "FLATTENGPT_MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri.get_secret_value(),
        "FLATTENGPT_MLFLOW_EXPERIMENT": settings.mlflow_experiment,
        "FLATTENGPT_LOG_FORMAT": "json",
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        os.environ.pop(name, None)


@pytest.fixture
def mlflow(mlflow_server: str) -> MlflowClient:
    return MlflowClient(mlflow_server)


def the_run(mlflow: MlflowClient, settings: Settings) -> Run:
    """The only run of the experiment."""
    experiment = mlflow.get_experiment_by_name(settings.mlflow_experiment)
    assert experiment is not None
    [run] = mlflow.search_runs([experiment.experiment_id])
    return run


def history(mlflow: MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in mlflow.get_metric_history(run.info.run_id, name))


def begun(store: JobStore) -> Lease:
    """An attempt at a new job with a secret in its webhook, which has got somewhere."""
    request = SPEC.as_request() | {
        "labels": {"team": "search"},
        "webhook": {"url": "https://example.org/?token=webhook-secret", "events": ["failed"]},
    }
    lease = store.take(store.submit(JobSpec.model_validate(request)).id, worker="w", lease_seconds=60)
    assert lease is not None
    losses = [Event("loss", {"step": step, "loss": 3.0 / step, "learning_rate": 1e-4}) for step in (1, 2, 3)]
    diverged = Event("loss", {"step": 4, "loss": None, "learning_rate": None})
    progress = Event("progress", {"stage": "recovering", "done": 3, "total": 4, "progress": 0.7})
    store.record(lease, stage="recovering", progress=0.7, events=[*losses, diverged, progress])
    return lease


def succeeded(store: JobStore, settings: Settings, lease: Lease, folder: Path) -> None:
    folder.mkdir()
    (folder / "recovery.svg").write_text("<svg/>")
    (folder / "model.safetensors").write_bytes(b"weights")
    artifacts = ArtifactStore(settings.artifacts).put_folder(lease.job_id, folder)
    store.store_result(lease, metrics=METRICS, artifacts=as_json(artifacts))
    store.succeed(lease)


@pytest.mark.slow
def test_a_real_job_with_recovery(
    store: JobStore, settings: Settings, mlflow: MlflowClient, tiny: Path, workers: Workers
) -> None:
    shutil.copytree(tiny, settings.models_dir / "tiny")
    request = SPEC.as_request() | {"recovery": {"method": "lora", "steps": 3, "rank": 2}, "labels": {"team": "search"}}
    job_id = store.submit(JobSpec.model_validate(request)).id
    workers().run(job_id)
    job = store.get(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.metrics is not None

    run = the_run(mlflow, settings)
    assert (run.info.run_name, run.info.status) == (job_id, "FINISHED")
    assert run.data.params["model"] == "local:tiny"
    assert (run.data.params["layers"], run.data.params["calibration.samples"]) == ("4", "8")
    assert (run.data.tags["flattengpt.job_id"], run.data.tags["label.team"]) == (job_id, "search")
    losses = [(event.data["step"], event.data["loss"]) for event in of_type(store, job_id, "loss")]
    assert history(mlflow, run, "recovery.loss") == losses
    assert losses
    before, after = (job.metrics[part]["perplexity"]["python-docs"] for part in ("dense", "compressed"))
    assert history(mlflow, run, "perplexity.python-docs") == [(0, before), (1, after)]
    assert run.data.metrics["compressed.layers"] == 4
    assert run.data.metrics["progress.compressing"] == 1
    shown = {file.path for file in mlflow.list_artifacts(run.info.run_id)}
    assert shown >= {"recovery.svg", "README.md", "flattengpt.json"}
    assert not [path for path in shown if path.endswith(".safetensors")]

    [version] = mlflow.search_model_versions(f"run_id = '{run.info.run_id}'")
    assert (version.name, version.source) == ("tiny", f"flattengpt:/jobs/{job_id}")
    assert version.tags.items() >= {"flattengpt.job_id": job_id, "flattengpt.base_model": "tiny"}.items()
    [told] = of_type(store, job_id, "mlflow_run")
    assert told.data == {"run_id": run.info.run_id, "experiment": settings.mlflow_experiment}


def test_a_resumed_job_has_one_run(store: JobStore, settings: Settings, mlflow: MlflowClient, tmp_path: Path) -> None:
    first = begun(store)
    track.track(settings, first.job_id)
    running = the_run(mlflow, settings)
    assert running.info.status == "RUNNING"
    assert history(mlflow, running, "recovery.loss") == [(1, 3.0), (2, 1.5), (3, 1.0)]
    store.hand_back(first, reason="the worker was told to stop")
    second = store.take(first.job_id, worker="v", lease_seconds=60)
    assert second is not None
    succeeded(store, settings, second, tmp_path / "result")
    for _ in range(2):  # once more changes nothing
        assert track.track(settings, first.job_id) == running.info.run_id
    ended = the_run(mlflow, settings)
    assert (ended.info.status, ended.data.tags["flattengpt.attempt"]) == ("FINISHED", "2")
    assert history(mlflow, ended, "recovery.loss") == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert [version.name for version in mlflow.search_model_versions(f"run_id = '{ended.info.run_id}'")] == ["tiny"]
    assert "webhook-secret" not in json.dumps(ended.to_dictionary())


def test_other_ends(store: JobStore, settings: Settings, mlflow: MlflowClient) -> None:
    for end in (lambda lease: store.fail(lease, {"code": "not_enough_disk"}), lambda lease: store.cancel(lease.job_id)):
        lease = begun(store)
        end(lease)
        if store.get(lease.job_id).status is JobStatus.CANCELLING:
            store.cancelled(lease)
        track.track(settings, lease.job_id)
    experiment = mlflow.get_experiment_by_name(settings.mlflow_experiment)
    assert experiment is not None
    runs = mlflow.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert sorted(run.info.status for run in runs) == ["FAILED", "KILLED"]
    assert {run.data.tags.get("flattengpt.error") for run in runs} == {"not_enough_disk", None}
    assert [v for run in runs for v in mlflow.search_model_versions(f"run_id = '{run.info.run_id}'")] == []


def test_a_server_that_comes_late_is_told_everything(
    store: JobStore,
    settings: Settings,
    mlflow: MlflowClient,
    mlflow_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attempt's tracker says that nobody answers, goes on trying, and tells all once somebody does."""
    monkeypatch.setattr(track, "LOOK_SECONDS", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    late = settings.model_copy(update={"mlflow_tracking_uri": SecretStr(f"http://127.0.0.1:{port}")})
    lease, over = begun(store), threading.Event()
    follower = threading.Thread(target=track.follow, args=(store, late, lease, over), daemon=True)
    follower.start()
    wait_until(lambda: of_type(store, lease.job_id, "mlflow_failed"), what="the event of the failure")
    with late_door(port, mlflow_server):
        succeeded(store, settings, lease, tmp_path / "result")
        over.set()
        follower.join(30)
    assert not follower.is_alive()
    run = the_run(mlflow, settings)
    assert (run.info.status, run.data.metrics["recovery.loss"]) == ("FINISHED", 1.0)


def test_a_job_whose_server_is_away(
    store: JobStore,
    settings: Settings,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It ends as ever and soon, says what happened, and nothing shows the password."""
    monkeypatch.setenv("FLATTENGPT_MLFLOW_TRACKING_URI", NOWHERE)
    job_id = store.submit(SPEC).id
    code = "import time; time.sleep(6); raise SystemExit(7)"
    started = time.monotonic()
    workers(stand_in(code), mlflow_tracking_uri=SecretStr(NOWHERE), max_attempts=1, stop_grace_seconds=1).run(job_id)
    assert time.monotonic() - started < 20
    job = store.get(job_id)
    assert (job.status, (job.error or {}).get("code")) == (JobStatus.FAILED, "worker_lost")
    [said] = of_type(store, job_id, "mlflow_failed")
    assert "does not answer" in said.data["reason"]
    log = (settings.data_dir / "logs" / f"{job_id}.1.mlflow.log").read_text()
    assert "MLflow is not told of the job" in log
    everything = b"".join(file.read_bytes() for file in settings.data_dir.rglob("*") if file.is_file())
    assert b"mlflow-password" not in everything
    assert "mlflow-password" not in "".join(capfd.readouterr())


def test_the_command_and_its_refusals(store: JobStore, settings: Settings, mlflow: MlflowClient) -> None:
    lease = begun(store)
    done = CliRunner().invoke(app, ["track", lease.job_id, "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["run_id"] == the_run(mlflow, settings).info.run_id
    bad = CliRunner().invoke(
        app, ["track", lease.job_id], env={"FLATTENGPT_MLFLOW_TRACKING_URI": "databricks://me:pw@x"}
    )
    assert bad.exit_code == 1
    assert "FLATTENGPT_MLFLOW_TRACKING_URI is no address that begins with http" in bad.stderr
    assert "pw" not in bad.stderr.replace("http", "")


def test_the_jobs_process_cannot_reach_the_server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "mlflow-token")
    inherited = child_environment()
    assert "FLATTENGPT_DATABASE_URL" in inherited
    assert not [name for name in inherited if "MLFLOW_TRACKING" in name]


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("s3://bucket/flat/", "s3://bucket/flat/JOB"),
        ("file:///data/artifacts", "flattengpt:/jobs/JOB"),
        ("/data/artifacts", "flattengpt:/jobs/JOB"),
        ("sftp://me:password@host/x", "flattengpt:/jobs/JOB"),
    ],
)
def test_the_source_of_a_version(url: str, source: str) -> None:
    assert source_of("JOB", url) == source
