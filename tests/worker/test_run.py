"""Real jobs on a tiny model: they end well, fail readably, stop when told to, and survive kill -9 of each process."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session
from transformers import AutoModelForCausalLM

from jobs.broker import make_announcer
from jobs.records import JobRecord, Lease
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.states import JobStatus
from jobs.store import JobStore
from jobs.sweeper import sweep_once
from jobs.tables import Job
from jobs.text_store import TextFormat, TextStore
from tests.hub.state import READ_TOKEN
from tests.hub_server import running_hub
from tests.processes import alive, descendants, wait_until
from tests.tiny_models import tiny_checkpoint
from tests.worker.conftest import SPEC, Workers, on_postgresql, on_sqlite
from tests.worker.test_parent import of_type, row, wait_for_child
from worker.parent import child_command
from worker.state_store import StateStore

CELERY = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "-P", "prefork", "-c", "1", "-l", "INFO"]


@pytest.fixture(autouse=True)
def settings(settings: Settings, tiny: Path) -> Settings:
    """Settings with `local:tiny`, and leases that expire soon."""
    shutil.copytree(tiny, settings.models_dir / "tiny")
    return settings.model_copy(update={"lease_seconds": 3, "heartbeat_seconds": 0.2})


@pytest.fixture(autouse=True)
def _same_settings_for_children(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**environment, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)


def log_of(settings: Settings, job: JobRecord, attempt: int = 1) -> str:
    return (settings.data_dir / "logs" / f"{job.id}.{attempt}.log").read_text()


def check_success(store: JobStore, settings: Settings, job_id: str, attempt: int) -> JobRecord:
    """Ended well, with a result that loads, and nothing left over."""
    job = store.get(job_id)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
    assert (job.attempt, job.progress, job.stage) == (attempt, 1.0, None)
    folder = settings.data_dir / "artifacts" / job_id
    assert {artifact["path"]: artifact["size"] for artifact in job.artifacts} == {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 4
    assert [path for path in (settings.data_dir / "artifacts").iterdir() if path != folder] == []
    assert list((settings.data_dir / "work").iterdir()) == []
    return job


@on_sqlite
def test_a_job_from_beginning_to_end(store: JobStore, settings: Settings, queued: str, workers: Workers) -> None:
    workers().run(queued)
    job = check_success(store, settings, queued, attempt=1)
    assert job.metrics is not None
    assert (job.metrics["dense"]["layers"], job.metrics["compressed"]["layers"]) == (6, 4)
    assert job.metrics["compressed"]["perplexity"]["python-docs"] > 1
    assert sorted(layer for group in job.metrics["groups"] for layer in group) == list(range(6))
    stages = [event.data["stage"] for event in of_type(store, queued, "stage")]
    assert list(dict.fromkeys(stages)) == ["loading", "calibrating", "compressing", "evaluating"]
    progress = [event.data["progress"] for event in of_type(store, queued, "progress")]
    assert progress == sorted(progress)
    manifest = json.loads((settings.data_dir / "artifacts" / queued / "flattengpt.json").read_text())
    assert manifest["request"] == job.request


@on_sqlite
def test_a_job_on_uploaded_texts(store: JobStore, settings: Settings, workers: Workers) -> None:
    """They go by their names to the end, wherever the worker has them."""
    texts = TextStore(settings)
    texts.put("mine", TextFormat.PLAIN, [b"Practice makes perfect. " * 200])
    texts.put("other", TextFormat.JSON_LINES, [json.dumps({"text": "All that glitters. " * 30}).encode()])
    request = SPEC.as_request()
    request["calibration"]["dataset"] = "python-docs+local:mine"
    request["evaluation"]["perplexity"] = ["local:other"]
    job_id = store.submit(JobSpec.model_validate(request)).id
    workers().run(job_id)
    metrics = check_success(store, settings, job_id, attempt=1).metrics
    assert metrics is not None
    assert metrics["compressed"]["perplexity"].keys() == {"local:other"}
    assert metrics["compressed"]["evaluation"]["split"] == {"local:other": "whole file"}
    folder = settings.data_dir / "artifacts" / job_id
    for written in ("README.md", "flattengpt.json"):
        text = (folder / written).read_text()
        assert "python-docs+local:mine" in text
        assert str(settings.data_dir) not in text


def asks_piqa(store: JobStore) -> str:
    request = SPEC.as_request()
    request["evaluation"] |= {"tasks": ["piqa"], "task_items": 3}
    return store.submit(JobSpec.model_validate(request)).id


@on_sqlite
def test_a_job_with_a_task_of_the_hub(
    store: JobStore, settings: Settings, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"goal": f"open jar {n}", "sol1": "twist the lid", "sol2": "eat the lid", "label": 0} for n in range(5)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.add("baber/piqa", {"train.jsonl": data, "validation.jsonl": data})
        job_id = asks_piqa(store)
        workers().run(job_id)
        assert [seen for seen in hub.seen if seen.authorization] == []
    metrics = check_success(store, settings, job_id, attempt=1).metrics
    assert metrics is not None
    assert metrics["compressed"]["tasks"]["piqa"] == {"metric": "acc_norm", "items": 3, "chance": 0.5}
    assert metrics["compressed"]["accuracy"].keys() == {"piqa", "mean"}
    assert metrics["compressed"]["retention"].keys() == {"piqa", "mean"}


@on_sqlite
def test_a_task_that_cannot_be_had_ends_the_job_before_the_work(
    store: JobStore, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    job_id = asks_piqa(store)
    workers().run(job_id)
    job = store.get(job_id)
    assert (job.status, job.stage) == (JobStatus.FAILED, "loading")
    assert job.error is not None
    assert (job.error["code"], job.error["field"]) == ("hub_unreachable", "evaluation.tasks")


@on_sqlite
def test_a_failure_is_readable_and_its_traceback_in_the_log_alone(
    store: JobStore, settings: Settings, queued: str, workers: Workers
) -> None:
    weights = settings.models_dir / "tiny" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])  # after the request was accepted
    workers().run(queued)
    job = store.get(queued)
    assert (job.status, job.attempt, job.artifacts) == (JobStatus.FAILED, 1, [])
    assert job.error is not None
    assert (job.error["code"], job.error["field"]) == ("unsupported_model", "model")
    assert "model.safetensors is not a valid safetensors file" in job.error["message"]
    told = json.dumps([job.error, *[event.data for event in store.events(queued)]])
    assert "Traceback" not in told
    assert str(settings.data_dir) not in told
    [line] = [json.loads(line) for line in log_of(settings, job).splitlines() if "Traceback" in line]
    assert (line["job_id"], line["attempt"], line["level"]) == (queued, 1, "error")
    assert line["event"] == "the attempt failed"


@on_sqlite
def test_what_nobody_foresaw_is_told_without_its_details(
    store: JobStore, settings: Settings, engine: Engine, queued: str, workers: Workers
) -> None:
    """Here: a request that this version of the service does not understand."""
    with Session(engine) as session, session.begin():
        session.execute(update(Job).where(Job.id == queued).values(request={"secret": "of another version"}))
    workers().run(queued)
    job = store.get(queued)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert "the worker's log has the details" in job.error["message"]
    assert "secret" not in json.dumps(job.error)
    assert "Traceback" in log_of(settings, job)


@on_sqlite
def test_a_failure_is_recorded_also_when_the_log_is_full(
    store: JobStore, settings: Settings, queued: str, workers: Workers
) -> None:
    def logging_to_a_full_disk(lease: Lease) -> Sequence[str]:
        return ("sh", "-c", 'exec "$@" > /dev/full 2>&1', "sh", *child_command(lease))

    (settings.models_dir / "tiny" / "config.json").write_text("{")
    workers(logging_to_a_full_disk).run(queued)
    job = store.get(queued)
    assert (job.status, job.attempt) == (JobStatus.FAILED, 1)
    assert job.error is not None
    assert job.error["code"] == "unsupported_model"


@pytest.fixture
def small_disk(settings: Settings, request: pytest.FixtureRequest) -> Iterator[None]:
    """The data folder's working files on a disk of their own, of so many bytes."""
    work = settings.data_dir / "work"
    work.mkdir()
    size = f"size={request.param}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(work)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a disk: a full one is NOT tested")
    yield
    subprocess.run(["umount", "--lazy", str(work)], check=True)


@on_sqlite
@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_gets_full(store: JobStore, settings: Settings, workers: Workers) -> None:
    """Here with what no estimate knows before: the text to train on."""
    request = SPEC.as_request() | {"method": "shortgpt", "recovery": {"method": "lora", "steps": 1}}
    job_id = store.submit(JobSpec.model_validate(request)).id
    workers().run(job_id)
    job = store.get(job_id)
    assert (job.status, job.attempt, job.stage) == (JobStatus.FAILED, 1, "recovering")
    assert job.error is not None
    assert "disk is full" in job.error["message"]
    assert "No space left on device" in log_of(settings, job)
    assert job.artifacts == []
    assert not (settings.data_dir / "artifacts" / job_id).exists()
    assert list((settings.data_dir / "work").iterdir()) == []


@on_sqlite
@pytest.mark.parametrize("small_disk", ["200k"], indirect=True)
@pytest.mark.usefixtures("small_disk")
def test_a_disk_with_no_room_for_the_job(store: JobStore, settings: Settings, queued: str, workers: Workers) -> None:
    workers().run(queued)
    job = store.get(queued)
    assert (job.status, job.attempt, job.stage) == (JobStatus.FAILED, 1, "loading")
    assert job.error is not None
    assert (job.error["code"], job.error["retryable"]) == ("not_enough_disk", True)
    assert "0.20 MiB are free for the worker's folder FLATTENGPT_DATA_DIR/work" in job.error["message"]
    assert str(settings.data_dir) not in json.dumps(job.error)
    assert "calibrating" not in [event.data["stage"] for event in of_type(store, queued, "stage")]
    assert str(settings.data_dir / "work") in log_of(settings, job)


@on_sqlite
def test_memory_that_cannot_hold_the_job(
    store: JobStore, queued: str, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATTENGPT_MAX_MEMORY_BYTES", str(100 * 2**20))
    workers().run(queued)
    job = store.get(queued)
    assert (job.status, job.attempt, job.stage) == (JobStatus.FAILED, 1, "loading")
    assert job.error is not None
    assert (job.error["code"], job.error["retryable"]) == ("not_enough_memory", False)
    assert "and the worker has 100.00 MiB for it" in job.error["message"]


@on_sqlite
def test_state_of_a_model_that_has_changed_is_dropped(
    store: JobStore, settings: Settings, queued: str, workers: Workers
) -> None:
    state = settings.data_dir / "work" / f"{queued}.0" / "state"
    state.mkdir(parents=True)
    (state / "request.json").write_text('{"model": [["model.safetensors", 1, 1]]}')
    workers().run(queued)
    job = check_success(store, settings, queued, attempt=1)
    assert "the state of the last attempt is dropped" in log_of(settings, job)
    assert [event.data["stage"] for event in of_type(store, queued, "stage")].count("calibrating") == 2


def deep(store: JobStore, settings: Settings) -> str:
    """A job of several merged layers, which take a while."""
    tiny_checkpoint(settings.models_dir / "deep", num_hidden_layers=16)
    request: dict[str, Any] = SPEC.as_request() | {"model": "local:deep", "layers": 8}
    request["calibration"] |= {"samples": 64, "sequence_length": 128}
    return store.submit(JobSpec.model_validate(request)).id


@on_postgresql
def test_cancel_is_honoured_within_one_layer(store: JobStore, settings: Settings, workers: Workers) -> None:
    job_id = deep(store, settings)
    worker = workers().start(job_id)
    wait_until(lambda: of_type(store, job_id, "merged"), what="the first merged layer")
    store.cancel(job_id)
    worker.finish()
    job = store.get(job_id)
    assert (job.status, job.artifacts, job.error) == (JobStatus.CANCELLED, [], None)
    asked = of_type(store, job_id, "cancelling")[0].seq
    assert len([event for event in of_type(store, job_id, "merged") if event.seq > asked]) <= 1
    assert [event.type for event in store.events(job_id)][-1] == "cancelled"
    assert "stopped between two steps" in log_of(settings, job)
    assert list((settings.data_dir / "work").iterdir()) == []
    assert not (settings.data_dir / "artifacts").exists()


@pytest.mark.slow
@on_sqlite
def test_a_killed_child_costs_an_attempt_and_not_the_job(
    store: JobStore, settings: Settings, engine: Engine, queued: str, workers: Workers
) -> None:
    worker = workers().start(queued)
    child = wait_for_child(store, queued)
    wait_until(lambda: store.get(queued).stage == "compressing", what="the job's middle")
    os.kill(child, signal.SIGKILL)
    worker.finish()
    check_success(store, settings, queued, attempt=2)
    assert row(engine, queued).deaths == 1
    died = of_type(store, queued, "died")[0].data
    assert died["stage"] == "compressing"
    assert "killed by SIGKILL" in died["reason"]


@pytest.mark.slow
@on_sqlite
def test_a_worker_on_another_host_goes_on(
    store: JobStore,
    settings: Settings,
    workers: Workers,
    tmp_path: Path,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hosts share the database, a bucket, and a model whose files have other times."""
    job_id = deep(store, settings)
    shared = {"artifacts_url": f"s3://{bucket}/results", "state_url": f"s3://{bucket}/states", "state_seconds": 0.001}
    for name, value in shared.items():
        monkeypatch.setenv(f"FLATTENGPT_{name.upper()}", str(value))
    one = workers(**shared).start(job_id)
    wait_until(lambda: of_type(store, job_id, "merged"), what="the first merged layer")
    one.stopping.set()
    one.finish()
    assert store.get(job_id).status is JobStatus.QUEUED
    assert len(of_type(store, job_id, "merged")) < 3
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(settings.models_dir / "deep", elsewhere / "models" / "deep", copy_function=shutil.copyfile)
    monkeypatch.setenv("FLATTENGPT_DATA_DIR", str(elsewhere))
    workers(name="other", data_dir=elsewhere, **shared).run(job_id)
    job = store.get(job_id)
    assert (job.status, job.attempt, job.error) == (JobStatus.SUCCEEDED, 2, None)
    assert [event.data for event in of_type(store, job_id, "state_restored")] == [{"from_attempt": 1}]
    merged = [tuple(event.data["layers"]) for event in of_type(store, job_id, "merged")]
    assert len(merged) == len(set(merged))
    assert StateStore(shared["state_url"]).job_ids() == []


@on_sqlite
def test_a_state_store_that_does_not_answer_costs_no_job(
    store: JobStore, settings: Settings, queued: str, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATTENGPT_STATE_URL", "file:///dev/null/states")
    workers(state_url="file:///dev/null/states").run(queued)
    job = check_success(store, settings, queued, attempt=1)
    assert "the state is not saved" in log_of(settings, job)


@contextmanager
def celery_workers(count: int, log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Celery workers that wait for messages; whatever is left of them is killed at the end."""
    with log.open("wb") as output:
        running = [subprocess.Popen([*CELERY, "-n", f"w{n}"], stdout=output, stderr=output) for n in range(count)]
    try:
        wait_until(lambda: log.read_text().count(" ready.") == count, what="the workers' readiness")
        yield running
    finally:
        for process in running:
            for pid in [*(descendants(process.pid) if process.poll() is None else {}), process.pid]:
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
@on_postgresql
def test_a_killed_worker_loses_its_lease_and_another_finishes_the_job(
    store: JobStore, settings: Settings, queued: str, tmp_path: Path
) -> None:
    announcer = make_announcer(settings)
    with celery_workers(2, tmp_path / "celery.log") as running:
        announcer.announce(queued)
        wait_until(lambda: store.get(queued).stage == "compressing", what="the job's middle")
        [(killed, tree)] = [
            (process, tree)
            for process, tree in ((process, descendants(process.pid)) for process in running)
            if any("worker.run" in line for line in alive(tree))
        ]
        children = {pid: created for pid, created in tree.items() if "worker.run" in psutil.Process(pid).cmdline()}
        for pid in [killed.pid, *(tree.keys() - children.keys())]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(children), seconds=5, what="the death of the job's process")
        assert store.get(queued).status is JobStatus.RUNNING

        def swept_to_the_end() -> bool:
            sweep_once(store, announcer, settings)
            return store.get(queued).ended

        wait_until(swept_to_the_end, what="the second attempt")
        wait_until(lambda: not list((settings.data_dir / "work").iterdir()), what="the worker's tidying up")
    check_success(store, settings, queued, attempt=2)
    assert "fell silent" in of_type(store, queued, "lease_expired")[0].data["reason"]
    assert of_type(store, queued, "died") == []
