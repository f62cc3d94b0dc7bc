"""The client against a real service."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.client import Client
from cli.download import download_result
from cli.errors import BadUsage, CommandFailed, DownloadDamaged, ServiceRefused, ServiceUnreachable
from cli.replies import Artifact
from tests.cli.conftest import TINY_JOB
from tests.processes import wait_until


def test_a_refusal_names_the_field(client: Client) -> None:
    with pytest.raises(ServiceRefused, match="sparsity") as refused:
        client.submit({"model": "local:tiny", "sparsity": 2})
    assert refused.value.http_status == 422


def test_nobody_there() -> None:
    with Client("http://127.0.0.1:9") as client:
        assert not client.is_ready()
        with pytest.raises(ServiceUnreachable, match=r"127\.0\.0\.1:9"):
            client.get("x")


def test_the_same_key_gives_the_same_job(client: Client) -> None:
    first = client.submit(TINY_JOB, idempotency_key="once")
    assert client.submit(TINY_JOB, idempotency_key="once").id == first.id
    client.cancel(first.id)


def test_pages_hold_each_job_once(client: Client) -> None:
    submitted = {client.submit(TINY_JOB | {"labels": {"page": "all"}}).id for _ in range(5)}
    seen: list[str] = []
    cursor = None
    while True:
        page = client.page(label="page:all", limit=2, cursor=cursor)
        seen += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == sorted(submitted, reverse=True)
    for job_id in submitted:
        client.cancel(job_id)


def test_events_come_in_order_and_end_with_the_job(client: Client) -> None:
    job = client.submit(TINY_JOB)
    events = list(client.events(job.id))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert (events[0].type, events[-1].type) == ("queued", "succeeded")
    progress = [event.data["progress"] for event in events if event.type == "progress"]
    assert progress == sorted(progress)
    assert list(client.events(job.id, after=events[-1].seq)) == []
    assert [event.seq for event in client.events(job.id, after=2)] == [event.seq for event in events[2:]]


def test_a_cancelled_job_ends_its_events(client: Client) -> None:
    job = client.submit(TINY_JOB)
    client.cancel(job.id)
    assert list(client.events(job.id))[-1].type == "cancelled"


def test_a_cancelled_job_is_retried_and_both_are_deleted(client: Client, data_dir: Path) -> None:
    job = client.submit(TINY_JOB)
    client.cancel(job.id)
    list(client.events(job.id))
    again = client.retry(job.id)
    with pytest.raises(ServiceRefused, match="cancel it") as refused:
        client.delete(again.id)
    assert refused.value.http_status == 409
    list(client.events(again.id))
    assert client.get(again.id).status == "succeeded"
    for deleted in (job, again):
        client.delete(deleted.id)
        with pytest.raises(ServiceRefused, match="no job"):
            client.get(deleted.id)
    assert not (data_dir / "artifacts" / again.id).exists()


def test_a_damaged_download_leaves_nothing(client: Client, data_dir: Path, tmp_path: Path) -> None:
    job = client.submit(TINY_JOB)
    list(client.events(job.id))
    job = client.get(job.id)
    out = tmp_path / "result"

    config = data_dir / "artifacts" / job.id / "config.json"
    config.write_bytes(config.read_bytes().replace(b"llama", b"lamma"))
    with pytest.raises(DownloadDamaged, match=r"config\.json"):
        download_result(client, job, out)
    assert list(tmp_path.iterdir()) == []

    config.write_bytes(config.read_bytes().replace(b"lamma", b"llama"))
    download_result(client, job, out)
    assert {path.name: path.stat().st_size for path in out.iterdir()} == {a.path: a.size for a in job.artifacts}
    with pytest.raises(BadUsage, match="exists already"):
        download_result(client, job, out)
    stray = out / "stray"
    stray.touch()
    download_result(client, job, out, replace=True)
    assert not stray.exists()


def test_an_artifact_must_stay_in_its_folder(client: Client, tmp_path: Path) -> None:
    job = client.submit(TINY_JOB)
    client.cancel(job.id)
    with pytest.raises(CommandFailed, match="no result"):
        download_result(client, job, tmp_path / "out")
    with pytest.raises(CommandFailed, match="was removed at 2026-11-25"):
        download_result(client, job.model_copy(update={"artifacts_removed_at": "2026-11-25T12:00Z"}), tmp_path / "out")
    evil = Artifact(path="../outside", size=0, sha256="", href="/healthz")
    with pytest.raises(DownloadDamaged, match="outside its folder"):
        download_result(client, job.model_copy(update={"artifacts": [evil]}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_events_survive_a_killed_service(data_dir: Path, tmp_path: Path) -> None:
    """The stream goes on where it broke, without a gap and without a repeat."""
    (tmp_path / "models").symlink_to(data_dir / "models")
    with Client("http://127.0.0.1:18427") as client:
        service = start_service(tmp_path, client)
        job = client.submit(TINY_JOB)
        seen = []
        for event in client.events(job.id):
            seen.append(event.seq)
            if event.type == "started" and event.attempt == 1:
                service.kill()
                service.wait()
                service = start_service(tmp_path, client)
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) > 3


def start_service(data_dir: Path, client: Client) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cli.main", "serve", "--port", "18427"]
    env = {
        "FLATTENGPT_AUTH": "none",
        "FLATTENGPT_DATA_DIR": str(data_dir),
        "FLATTENGPT_SWEEP_SECONDS": "0.5",
        "FLATTENGPT_ANNOUNCE_AFTER_SECONDS": "2",
    }
    with (data_dir / "service.log").open("ab") as log:
        service = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    wait_until(client.is_ready, what="the service's readiness")
    return service
