"""One service for all pages, with API keys, a tiny model and a job that has ended; and a folder to run commands in."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.client import Client
from cli.demo_service import embedded_service
from jobs.database import make_engine, upgrade
from jobs.keys import KeyStore
from jobs.scopes import Scope
from jobs.settings import Settings
from tests.cli.conftest import TINY_JOB
from tests.docs.pages import ROOT
from tests.receiver import receiving
from tests.tiny_models import tiny_checkpoint

TOOLS = ("bash", "curl", "jq", "tar", "sha256sum", "awk")


@dataclass(frozen=True)
class Place:
    """What the commands of a page meet. files: what they name; each page has a copy of them to work in."""

    url: str
    hook: str
    files: Path
    job_id: str


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service") / ".flattengpt"
    tiny_checkpoint(folder / "models" / "tiny")
    return folder


@pytest.fixture(scope="module")
def place(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A service, its environment, and what the pages take for granted."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"the pages' commands need {missing}")
    folder = tmp_path_factory.mktemp("files")
    shutil.copytree(data_dir / "models" / "tiny", folder / "my-model")
    for name in ("notes.txt", "my-text.txt", "a.txt", "b.txt"):
        (folder / name).write_text(f"{name} says: practice makes perfect, and haste makes waste. " * 200)
    (folder / "notes.jsonl").write_text('{"text": "All that glitters is not gold."}\n' * 50)
    (folder / "request.yaml").write_text("{model: local:tiny, layers: 4}")
    with pytest.MonkeyPatch.context() as environment, receiving() as receiver:
        here = Settings(data_dir=data_dir, database_url="")
        engine = make_engine(here.database)
        upgrade(engine)
        key = KeyStore(engine).create("tests", [Scope.ADMIN]).key
        engine.dispose()
        for name, value in {
            "FLATTENGPT_DATA_DIR": str(data_dir),
            "FLATTENGPT_API_KEY": key.get_secret_value(),
            "FLATTENGPT_WEBHOOK_ALLOW_PRIVATE": "true",
            "FLATTENGPT_WEBHOOK_ALLOW_HTTP": "true",
            "FLATTENGPT_MIN_FREE_DISK_BYTES": "0",
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }.items():
            environment.setenv(name, value)
        with embedded_service(data_dir, data_dir.parent / "service.log", auth="required") as url, Client(url) as client:
            environment.setenv("FLATTENGPT_URL", url)
            job = client.wait(client.submit(TINY_JOB).id)
            assert job.status == "succeeded", job.error
            yield Place(url, receiver.url.split("?")[0], folder, job.id)
