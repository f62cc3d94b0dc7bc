"""From a private model of the Hub to a repository on the Hub, through the whole service, with a token to guard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from pydantic import SecretStr

from cli.client import Client
from cli.demo_service import embedded_service
from cli.errors import ServiceRefused
from cli.replies import Job
from tests.hub.state import WRITE_TOKEN, Hub
from tests.hub_server import running_hub
from tests.processes import wait_until
from tests.tiny_models import tiny_checkpoint

pytestmark = pytest.mark.slow

TARGET = "acme/tiny-flat4"
REQUEST: dict[str, Any] = {
    "model": "acme/tiny",
    "layers": 4,
    "calibration": {"dataset": "python-docs", "samples": 8, "sequence_length": 64},
    "recovery": {"method": "lora", "steps": 4, "rank": 2},
    "evaluation": {"perplexity": ["python-docs"], "sequence_length": 64, "windows": 4, "benchmark": False},
    "publish": {"repo_id": TARGET},
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub that holds a private model."""
    files = {file.name: file.read_bytes() for file in tiny_checkpoint(tmp_path / "source").iterdir()}
    with running_hub() as hub:
        hub.add("acme/tiny", files, private=True)
        yield hub


@pytest.fixture
def service_dir(tmp_path: Path) -> Path:
    """Everything that the service writes."""
    return tmp_path / "service"


@pytest.fixture(params=["the service's token"])
def client(
    hub: Hub, service_dir: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Client]:
    """A service whose environment has the token, or none."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    if request.param is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with embedded_service(service_dir, service_dir / "service.log") as url, Client(url) as client:
        yield client


def run(client: Client, hub_token: SecretStr | None = None) -> Job:
    job = client.submit(REQUEST, hub_token=hub_token)
    for _ in client.events(job.id):
        pass
    return client.get(job.id)


def files_with_the_token(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and WRITE_TOKEN.encode() in file.read_bytes()]


def test_a_model_of_the_hub_comes_back_smaller(client: Client, hub: Hub, service_dir: Path) -> None:
    job = run(client)
    assert job.status == "succeeded", job.error
    repository = hub.repositories[TARGET]
    assert repository.private
    assert repository.head.title == f"FlattenGPT job {job.id}"
    uploaded = repository.head.files
    stored = service_dir / "artifacts" / job.id
    assert {path: content for path, content in uploaded.items() if path != ".gitattributes"} == {
        artifact.path: (stored / artifact.path).read_bytes() for artifact in job.artifacts
    }
    card = ModelCard(uploaded["README.md"].decode())
    assert (card.data.base_model, card.data.model_name) == ("acme/tiny", TARGET)
    stages = [event.data["stage"] for event in client.events(job.id) if event.type == "stage"]
    assert stages[-4:] == ["compressing", "recovering", "evaluating", "publishing"]
    assert "loss" in {event.type for event in client.events(job.id)}
    assert files_with_the_token(service_dir) == []


@pytest.mark.parametrize("client", [None], indirect=True)
def test_a_token_of_the_requests_own_is_all_that_it_needs(client: Client, hub: Hub, service_dir: Path) -> None:
    """And nothing that the service writes has it: no log, no database, no message, no artifact, no cache."""
    with pytest.raises(ServiceRefused, match="may not read it"):
        run(client)
    job = run(client, SecretStr(WRITE_TOKEN))
    assert job.status == "succeeded", job.error
    assert hub.repositories[TARGET].head.title == f"FlattenGPT job {job.id}"
    assert WRITE_TOKEN not in str([*client.events(job.id)])
    assert files_with_the_token(service_dir) == []
    wait_until(lambda: not list((service_dir / "work").iterdir()), what="the end of the job's files")
    assert not (service_dir / "hub" / "models--acme--tiny" / "snapshots").exists()


def test_a_failed_upload_keeps_the_artifacts(client: Client, hub: Hub, service_dir: Path) -> None:
    hub.fail("POST /api/repos/create", 403, message=f"Bearer {WRITE_TOKEN} may not")
    job = run(client)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "publish_failed"
    assert f"flattengpt download {job.id}" in job.error["message"]
    assert "model.safetensors" in {artifact.path for artifact in job.artifacts}
    assert job.metrics is not None
    assert files_with_the_token(service_dir) == []


def test_a_failed_download_keeps_the_token_out_of_the_log(client: Client, hub: Hub, service_dir: Path) -> None:
    hub.fail("GET /acme/tiny/resolve/.*safetensors", 403, message=f"Bearer {WRITE_TOKEN} may not")
    hub.fail("HEAD /acme/tiny/resolve/.*safetensors", 403)
    job = run(client)
    assert job.status == "failed"
    log = next((service_dir / "logs").glob(f"{job.id}.*")).read_text()
    assert "Traceback" in log
    assert files_with_the_token(service_dir) == []
