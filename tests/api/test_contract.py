"""The whole OpenAPI document against the real application: schemathesis makes up requests, alone and in sequences.

No answer may be a 5xx, or one that the document does not tell of: status, media type, headers and body.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from api import polling
from jobs.artifacts import ArtifactStore, as_json
from jobs.keys import KeyStore
from jobs.scopes import Scope
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from tests.api.conftest import REQUEST
from tests.api.test_jobs import METRICS, taken
from tests.api_server import serving

ENDED = 3
"""Jobs that are there from the start, of each end."""
CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.fixture
def settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A service that asks for keys, whatever their number; it grants no long waits, which would only take time."""
    monkeypatch.setattr(polling, "MAX_WAIT_SECONDS", 0)
    return settings.model_copy(update={"auth": "required", "rate_limit": ""})


@pytest.fixture
def key(engine: Engine, settings: Settings, tmp_path: Path) -> str:
    """A key for everything, which has a job of each end."""
    new = KeyStore(engine).create("contract", list(Scope))
    store = JobStore(engine).of(new.record.id)
    folder = tmp_path / "result"
    (folder / "figures").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "figures" / "a.svg").write_text("<svg/>")
    for _ in range(ENDED):
        job_id = store.submit(JobSpec(**REQUEST)).id
        lease = taken(store, job_id)
        stored = ArtifactStore(settings.artifacts).put_folder(job_id, folder)
        store.store_result(lease, metrics=METRICS, artifacts=as_json(stored))
        store.succeed(lease)
    hooked = JobSpec(**REQUEST, webhook={"url": "https://example.org/hook"})
    for _ in range(ENDED):
        store.cancel(store.submit(hooked).id)
    return new.key.get_secret_value()


@pytest.fixture
def url(settings: Settings, key: str) -> Iterator[str]:
    with serving(settings) as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # which takes fewer texts than SQLite
def test_no_answer_that_is_not_in_the_document(url: str, key: str, store: JobStore, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", CONFIG, "run", f"{url}/openapi.json"]
    done = subprocess.run(
        [*command, "--header", f"Authorization: Bearer {key}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path.cwd()), "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(store.overview().jobs.values()) > ENDED, "no job was submitted"
