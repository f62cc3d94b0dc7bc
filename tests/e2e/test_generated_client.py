"""A client that openapi-python-client makes of the served OpenAPI document, on the whole way of a job."""

import importlib
import io
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from openapi_python_client import generate
from openapi_python_client.config import Config, ConfigFile, MetaType
from safetensors.torch import load

from cli.demo_service import embedded_service
from tests.tiny_models import tiny_checkpoint

pytestmark = pytest.mark.slow

CONFIG = Path("docs/openapi-python-client.yaml")
PACKAGE = "flattengpt_client"
UPLOADS = {"PUT /models/{name}", "PUT /datasets/{name}"}
"""Whose further ways to send the same bytes a generator of one function an operation has no use for."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with nothing in it."""
    folder = tmp_path_factory.mktemp("service")
    with embedded_service(folder, folder / "service.log") as url:
        yield url


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    body: dict[str, Any] = httpx.get(f"{url}/openapi.json").json()
    return body


@pytest.fixture(scope="module")
def generated(url: str, document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The package, made and imported."""
    folder = tmp_path_factory.mktemp("generated")
    options = ConfigFile.load_from_path(CONFIG)
    options.post_hooks = []  # they make it pretty
    config = Config.from_sources(options, MetaType.NONE, f"{url}/openapi.json", "utf-8", True, folder / PACKAGE)
    for error in generate(config=config):
        assert any(upload in error.header for upload in UPLOADS), (error.header, error.detail)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module(PACKAGE)


def packed(folder: Path) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    return archive.getvalue()


def test_a_whole_journey(generated: ModuleType, document: dict[str, Any], url: str, tmp_path: Path) -> None:
    def call(name: str, *path: str, **arguments: Any) -> Any:
        """What an operation answers, parsed into a class of the client's."""
        module = importlib.import_module(f"{PACKAGE}.api.{name}")
        return module.sync(*path, client=client, **arguments)

    models: Any = importlib.import_module(f"{PACKAGE}.models")
    file: Any = importlib.import_module(f"{PACKAGE}.types").File
    with generated.AuthenticatedClient(url, token="none is asked for", timeout=httpx.Timeout(60)) as client:
        source = tiny_checkpoint(tmp_path / "tiny")
        stored = call("models.put_model", "mine", body=file(payload=packed(source)))
        assert isinstance(stored, models.Model), stored
        text = call("datasets.put_dataset", "notes", body=file(payload=b"A layer is a function of a stream. " * 200))
        assert (stored.model, stored.layers, text.dataset) == ("local:mine", 6, "local:notes")

        spec = models.JobSpec(
            model=stored.model,
            layers=4,
            calibration=models.CalibrationSpec(dataset=text.dataset, samples=8, sequence_length=64),
            evaluation=models.EvaluationSpec(
                perplexity=["python-docs"], sequence_length=64, windows=4, benchmark=False
            ),
            labels=models.JobSpecLabels.from_dict({"team": "search"}),
        )
        job = call("jobs.submit_job", body=spec, idempotency_key="once")
        assert isinstance(job, models.JobReply), job
        assert call("jobs.submit_job", body=spec, idempotency_key="once").id == job.id
        assert [found.id for found in call("jobs.list_jobs", label="team:search").jobs] == [job.id]
        deadline = time.monotonic() + 300
        while job.status not in (models.JobStatus.SUCCEEDED, models.JobStatus.FAILED):
            assert time.monotonic() < deadline
            job = call("jobs.get_job", job.id, prefer="wait=20")
        assert job.status is models.JobStatus.SUCCEEDED, job.error
        assert (job.metrics.dense.layers, job.metrics.compressed.layers) == (6, 4)
        assert job.metrics.compressed.perplexity["python-docs"] > 1
        events = call("events.list_job_events", job.id)
        assert [event.seq for event in events.events] == list(range(1, len(events.events) + 1))
        assert (events.events[-1].type_, events.next_after) == ("succeeded", None)

        listed = {artifact.path: artifact for artifact in call("artifacts.list_job_artifacts", job.id).artifacts}
        weights = call("artifacts.get_job_artifact", job.id, "model.safetensors").payload.read()
        assert len(weights) == listed["model.safetensors"].size
        assert "model.layers.3.mlp.down_proj.weight" in load(weights)

        other = call("jobs.submit_job", body=spec)
        assert call("jobs.cancel_job", other.id).status in (models.JobStatus.CANCELLED, models.JobStatus.CANCELLING)
        refused = call("jobs.cancel_job", job.id)
        assert isinstance(refused, models.Problem)
        assert (refused.status, refused.code) == (409, "conflict")
        spec.layers = 60
        refused = call("jobs.submit_job", body=spec)
        assert [error.field for error in refused.errors] == ["layers"]
        assert call("jobs.delete_job", job.id) is None
        assert call("jobs.get_job", job.id).code == "job_not_found"
        assert b"flattengpt_jobs" in call("service.metrics")


def test_every_operation_is_in_it(generated: ModuleType, document: dict[str, Any]) -> None:
    for path in document["paths"].values():
        for operation in path.values():
            [tag] = operation["tags"]
            name = "".join(f"_{sign.lower()}" if sign.isupper() else sign for sign in operation["operationId"])
            module = importlib.import_module(f"{PACKAGE}.api.{tag}.{name}")
            assert {"sync", "asyncio", "sync_detailed", "asyncio_detailed"} <= vars(module).keys()
