"""`flattengpt upload` and the client's uploads against a real service."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from cli.client import AsyncClient, Client
from cli.errors import BadUsage, ServiceRefused
from cli.upload import upload_of
from tests.cli.conftest import TINY_JOB
from tests.cli.test_commands import run


@pytest.fixture
def checkpoint(data_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, as somebody has it elsewhere."""
    folder = tmp_path / "mine"
    shutil.copytree(data_dir / "models" / "tiny", folder)
    (folder / ".hidden").touch()
    return folder


def test_a_model_and_a_text_are_uploaded_and_used(client: Client, url: str, checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 400)
    done = run("upload", str(checkpoint), "--name", "used", url=url)
    assert (done.exit_code, done.stdout) == (0, "local:used\n"), done.stderr
    said = run("upload", str(text), "--json", url=url)
    assert json.loads(said.stdout) == {"kind": "datasets", "name": "local:notes", "size": text.stat().st_size}

    calibration = TINY_JOB["calibration"] | {"dataset": "local:notes"}
    job = client.wait(client.submit(TINY_JOB | {"model": "local:used", "calibration": calibration}).id)
    assert job.status == "succeeded", job.error
    assert {"used", "tiny"} <= {stored.name for stored in client.stored("models")}
    assert [stored.name for stored in client.stored("datasets")] == ["notes"]
    client.remove("models", "used")
    client.remove("datasets", "notes")
    assert client.stored("datasets") == []
    with pytest.raises(ServiceRefused, match="no model 'used'"):
        client.remove("models", "used")


def test_the_awaitable_client_uploads_too(client: Client, url: str, checkpoint: Path) -> None:
    sent: list[int] = []

    async def upload() -> str:
        async with AsyncClient(url) as service:
            name = await service.upload(checkpoint, on_bytes=sent.append)
            assert "mine" in {stored.name for stored in await service.stored("models")}
            await service.remove("models", "mine")
            return name

    assert asyncio.run(upload()) == "local:mine"
    assert sum(sent) == upload_of(checkpoint).size
    assert "mine" not in {stored.name for stored in client.stored("models")}


def test_what_the_service_refuses_is_one_readable_line(url: str, checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin").write_bytes(b"x")
    done = run("upload", str(checkpoint), url=url)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "pytorch_model.bin" in done.stderr
    assert len(done.stderr.strip().splitlines()[-1].split("error:")) == 2


@pytest.mark.parametrize("name", ["absent", "script.py", "empty"])
def test_what_is_no_upload(tmp_path: Path, name: str) -> None:
    (tmp_path / "script.py").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadUsage, match=name):
        upload_of(tmp_path / name)
