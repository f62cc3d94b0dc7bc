"""What a job's process does before it computes anything: it fetches the model and looks where the result is to go."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import SecretStr

from flattengpt_core.errors import InvalidRequest, ModelGated
from jobs.errors import PublishConflict
from jobs.hub_token import HubToken
from jobs.records import Lease
from jobs.sealing import Sealer
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from tests.hub.state import READ_TOKEN, Hub
from tests.hub_server import running_hub
from tests.worker.conftest import SPEC, on_sqlite
from worker.attempt import Attempt
from worker.places import clear_work
from worker.publish_stage import refuse_place
from worker.reporter import Reporter
from worker.run import fetch

pytestmark = on_sqlite


@pytest.fixture
def hub(tiny: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.add("acme/tiny", {file.name: file.read_bytes() for file in tiny.iterdir()})
        yield hub


def attempt(store: JobStore, settings: Settings, hub: Hub, *, token: str | None = None, **request: Any) -> Attempt:
    """The first attempt of a new job; its settings are those of its process, which has the job's token."""
    spec = JobSpec.model_validate(SPEC.as_request() | {"model": "acme/tiny"} | request)
    secret = SecretStr(token) if token else None
    job = store.submit(spec, hub_token=HubToken(secret, Sealer(settings)) if secret else None)
    inside = settings.model_copy(update={"hf_endpoint": hub.endpoint, "hf_token": secret})
    reporter = cast("Reporter", SimpleNamespace(look=lambda: None))
    return Attempt(Lease(job.id, 1), spec, inside, store, reporter, job)


def test_what_only_the_jobs_token_may_read_is_for_this_job_alone(store: JobStore, settings: Settings, hub: Hub) -> None:
    hub.repositories["acme/tiny"].gated = True
    own = attempt(store, settings, hub, token=READ_TOKEN)
    folder = fetch(own)
    assert (folder / "model.safetensors").is_file()
    assert folder.is_relative_to(settings.data_dir.absolute() / "work" / f"{own.lease.job_id}.1" / "download")
    with pytest.raises(ModelGated):
        fetch(attempt(store, settings, hub))
    clear_work(settings, own.lease.job_id)
    assert not folder.exists()


def test_what_anyone_may_read_is_kept_for_all(store: JobStore, settings: Settings, hub: Hub) -> None:
    folder = fetch(attempt(store, settings, hub, token=READ_TOKEN))
    assert folder.is_relative_to(settings.data_dir.absolute() / "hub")
    assert {seen.authorization for seen in hub.seen} == {None}
    assert fetch(attempt(store, settings, hub)) == folder


def test_places_that_would_be_refused_after_the_work(
    store: JobStore, settings: Settings, hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "allowed" / "taken").mkdir(parents=True)
    (tmp_path / "allowed" / "taken" / "model.safetensors").write_bytes(b"someone's work")
    settings = settings.model_copy(update={"publish_urls": f"file://{tmp_path}/allowed"})
    model = tmp_path / "model"
    model.mkdir()
    (model / "README.md").write_text("---\nlicense: llama3.1\n---\n")
    for publish, error in [
        ({"repo_id": "acme/mine", "private": False}, InvalidRequest),
        ({"url": f"file://{tmp_path}/elsewhere/x"}, InvalidRequest),
        ({"url": f"file://{tmp_path}/allowed/taken"}, PublishConflict),
        ({"url": f"file://{tmp_path}/allowed/taken", "overwrite": True}, None),
        ({"url": f"file://{tmp_path}/allowed/new"}, None),
        ({"repo_id": "acme/mine"}, None),
    ]:
        refused = attempt(store, settings, hub, publish=publish)
        assert refused.spec.publish is not None
        if error is None:
            refuse_place(refused, refused.spec.publish, model)
            continue
        with pytest.raises(error):
            refuse_place(refused, refused.spec.publish, model)
