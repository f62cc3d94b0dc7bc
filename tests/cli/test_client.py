"""The client against a real service."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli.client import AsyncClient, Client
from cli.errors import BadUsage, CommandFailed, DownloadDamaged, JobStillRuns, ServiceRefused, ServiceUnreachable
from cli.replies import Artifact, Job
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


def test_waiting_for_a_job(client: Client) -> None:
    job = client.submit(TINY_JOB)
    with pytest.raises(JobStillRuns, match=job.id):
        client.wait(job.id, timeout_seconds=0.01)
    done = client.wait(job.id)
    assert done.status == "succeeded"
    assert client.wait(job.id, timeout_seconds=0.01) == done
    with pytest.raises(ServiceRefused, match="no job"):
        client.wait("x")


def test_the_awaitable_client_does_the_same(client: Client, url: str, tmp_path: Path) -> None:
    labels = {"labels": {"by": "async"}}

    async def journey() -> Job:
        async with AsyncClient(url) as service:
            assert await service.is_ready()
            job = await service.submit(TINY_JOB | labels, idempotency_key="awaited")
            assert (await service.submit(TINY_JOB | labels, idempotency_key="awaited")).id == job.id
            seen = [event.seq async for event in service.events(job.id)]
            done = await service.wait(job.id)
            assert seen == [event.seq for event in client.events(job.id)]
            await service.download(done, tmp_path / "result")
            config = bytearray()
            await service.read(next(a for a in done.artifacts if a.path == "config.json"), config.extend, start=1)
            assert b"{" + config == (tmp_path / "result" / "config.json").read_bytes()
            other = await service.submit(TINY_JOB | labels)
            await service.cancel(other.id)
            assert (await service.wait(other.id)).status == "cancelled"
            again = await service.retry(other.id)
            listed = [job.id async for job in service.jobs(label="by:async", limit=2)]
            assert listed == [again.id, other.id, job.id]
            assert (await service.page(label="by:async", method="fcm")).jobs == []
            await service.cancel(again.id)
            await service.wait(again.id)
            await service.delete(again.id)
            with pytest.raises(ServiceRefused, match="no job"):
                await service.get(again.id)
            return done

    done = asyncio.run(journey())
    assert done == client.get(done.id)
    assert {path.name for path in (tmp_path / "result").iterdir()} == {artifact.path for artifact in done.artifacts}


def test_the_awaitable_client_finds_nobody() -> None:
    async def ask() -> None:
        async with AsyncClient("http://127.0.0.1:9") as service:
            assert not await service.is_ready()
            with pytest.raises(ServiceUnreachable, match=r"127\.0\.0\.1:9"):
                await service.get("x")

    asyncio.run(ask())


def test_jobs_go_over_all_pages(client: Client) -> None:
    ids = [client.submit(TINY_JOB | {"labels": {"walk": "all"}}).id for _ in range(3)]
    for job_id in ids:
        client.cancel(job_id)
    since = datetime.now(UTC) - timedelta(hours=1)
    assert [job.id for job in client.jobs(label="walk:all", limit=1, created_after=since)] == ids[::-1]
    assert list(client.jobs(label="walk:all", created_before=since)) == []


class Cut:
    """A way to the service that breaks each connection after so many bytes of the answer, and counts them."""

    def __init__(self, url: str, *, after: int) -> None:
        self._target, self._after, self.connections = urlsplit(url), after, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                assert self._target.hostname
                far = socket.create_connection((self._target.hostname, self._target.port or 80))
                threading.Thread(target=self._relay, args=(near, far, None), daemon=True).start()
                threading.Thread(target=self._relay, args=(far, near, self._after), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        sent = 0
        with suppress(OSError):
            while (limit is None or sent < limit) and (block := source.recv(4096)):
                sink.sendall(block)
                sent += len(block)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.close()


def test_a_download_goes_on_where_its_connection_broke(client: Client, url: str, tmp_path: Path) -> None:
    job = client.wait(client.submit(TINY_JOB).id)
    weights = max(job.artifacts, key=lambda artifact: artifact.size)
    cut = Cut(url, after=weights.size // 3)
    arrived = []
    with Client(cut.url) as broken:
        broken.download(job, tmp_path / "result", on_bytes=arrived.append)
    cut.close()
    assert cut.connections > 3
    assert sum(arrived) == sum(artifact.size for artifact in job.artifacts), "nothing was fetched twice"
    client.download(job, tmp_path / "whole")
    for artifact in job.artifacts:
        assert (tmp_path / "result" / artifact.path).read_bytes() == (tmp_path / "whole" / artifact.path).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result", "whole"]


def test_an_interrupted_download_goes_on_the_next_time(client: Client, tmp_path: Path) -> None:
    job = client.wait(client.submit(TINY_JOB).id)
    weights = max(job.artifacts, key=lambda artifact: artifact.size)
    arrived = 0

    def interrupt(size: int) -> None:
        nonlocal arrived
        arrived += size
        if arrived > weights.size // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.download(job, tmp_path / "result", on_bytes=interrupt)
    assert not (tmp_path / "result").exists()
    kept = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert kept >= weights.size // 2
    client.download(job, tmp_path / "result")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_damaged_download_is_not_kept(client: Client, data_dir: Path, tmp_path: Path) -> None:
    job = client.submit(TINY_JOB)
    list(client.events(job.id))
    job = client.get(job.id)
    out = tmp_path / "result"

    config = data_dir / "artifacts" / job.id / "config.json"
    config.write_bytes(config.read_bytes().replace(b"llama", b"lamma"))
    with pytest.raises(DownloadDamaged, match=r"config\.json"):
        client.download(job, out)
    assert not out.exists()
    assert list(tmp_path.rglob("config.json")) == []

    config.write_bytes(config.read_bytes().replace(b"lamma", b"llama"))
    client.download(job, out)
    assert {path.name: path.stat().st_size for path in out.iterdir()} == {a.path: a.size for a in job.artifacts}
    with pytest.raises(BadUsage, match="exists already"):
        client.download(job, out)
    stray = out / "stray"
    stray.touch()
    client.download(job, out, replace=True)
    assert not stray.exists()


def test_an_artifact_must_stay_in_its_folder(client: Client, tmp_path: Path) -> None:
    job = client.submit(TINY_JOB)
    client.cancel(job.id)
    with pytest.raises(CommandFailed, match="no result"):
        client.download(job, tmp_path / "out")
    with pytest.raises(CommandFailed, match="was removed at 2026-11-25"):
        client.download(job.model_copy(update={"artifacts_removed_at": "2026-11-25T12:00Z"}), tmp_path / "out")
    evil = Artifact(path="../outside", size=0, sha256="", href="/healthz")
    with pytest.raises(DownloadDamaged, match="outside its folder"):
        client.download(job.model_copy(update={"artifacts": [evil]}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
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
