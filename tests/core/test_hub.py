"""Fetching through the real client, from a local server that speaks the Hub's protocol."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flattengpt_core.checkpoint import inspect
from flattengpt_core.errors import ModelGated, ModelNotFound, ModelRenamed, UnsupportedModel
from flattengpt_core.hub import REQUESTS_TOKEN, HubUnreachable, fetch_model, holds_files, look_up
from flattengpt_core.licence import Licence, licence_of
from tests.hub.repositories import Repository, new_repository
from tests.hub.state import READ_TOKEN, Hub
from tests.hub_server import running_hub
from tests.tiny_models import tiny_checkpoint

REPO = "acme/tiny"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """A checkpoint's files."""
    return {file.name: file.read_bytes() for file in tiny_checkpoint(tmp_path / "source").iterdir()}


@pytest.fixture
def repository(hub: Hub, files: dict[str, bytes]) -> Repository:
    """A model on the Hub, with pickled weights and code besides."""
    return hub.add(REPO, files | {"pytorch_model.bin": b"pickle", "modeling_tiny.py": b"raise SystemExit"})


def fetch(hub: Hub, tmp_path: Path, *, repo_id: str = REPO, revision: str = "main", token: str | None = None) -> Path:
    cache = tmp_path / "cache"
    return fetch_model(repo_id, revision=revision, token=token, endpoint=hub.endpoint, cache_dir=cache)


def test_the_commit_and_the_config_are_looked_up(hub: Hub, files: dict[str, bytes], repository: Repository) -> None:
    found = look_up(REPO, revision="main", token=None, endpoint=hub.endpoint)
    assert found.commit == repository.head.id
    assert found.config == json.loads(files["config.json"])
    assert not hub.requests("safetensors")


def test_the_files_arrive_as_they_are(
    hub: Hub, tmp_path: Path, files: dict[str, bytes], repository: Repository
) -> None:
    folder = fetch(hub, tmp_path)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    assert inspect(folder).num_layers == 6


def test_a_revision_is_kept_to(hub: Hub, tmp_path: Path, files: dict[str, bytes], repository: Repository) -> None:
    pinned = repository.head.id
    repository.tags["v1"] = pinned
    repository.add("Another config", repository.head.files | {"config.json": b"{}"})
    for revision in (pinned, "v1"):
        folder = fetch(hub, tmp_path, revision=revision)
        assert (folder / "config.json").read_bytes() == files["config.json"]
        assert look_up(REPO, revision=revision, token=None, endpoint=hub.endpoint).commit == pinned


def test_what_is_there_is_not_fetched_again(hub: Hub, tmp_path: Path, repository: Repository) -> None:
    folder = fetch(hub, tmp_path, revision=repository.head.id)
    hub.fail(".*", 500)
    assert fetch(hub, tmp_path, revision=repository.head.id) == folder


def test_a_renamed_model_says_its_name(
    hub: Hub, tmp_path: Path, files: dict[str, bytes], repository: Repository
) -> None:
    hub.renamed["acme/old-name"] = REPO
    with pytest.raises(ModelRenamed, match="acme/old-name is called acme/tiny now"):
        look_up("acme/old-name", revision="main", token=None, endpoint=hub.endpoint)
    with pytest.raises(ModelRenamed, match="acme/old-name is called acme/tiny now"):
        fetch(hub, tmp_path, repo_id="acme/old-name")
    # A job that was accepted before goes on.
    folder = fetch(hub, tmp_path, repo_id="acme/old-name", revision=repository.head.id)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_the_licence_is_looked_up(hub: Hub, tmp_path: Path, files: dict[str, bytes]) -> None:
    head = b"---\nlicense: other\nlicense_name: llama3.2\nlicense_link: LICENSE.txt\n---\n# tiny\n"
    hub.add(REPO, files | {"README.md": head})
    licence = Licence("other", "llama3.2", "LICENSE.txt")
    assert look_up(REPO, revision="main", token=None, endpoint=hub.endpoint).licence == licence
    assert licence_of(fetch(hub, tmp_path)) == licence


def test_a_private_model_needs_a_token_which_only_the_hub_sees(
    hub: Hub, tmp_path: Path, repository: Repository
) -> None:
    repository.private = True
    with pytest.raises(ModelNotFound, match="the worker's HF_TOKEN may not read it"):
        fetch(hub, tmp_path)
    hub.seen.clear()
    fetch(hub, tmp_path, token=READ_TOKEN)
    hub_host = hub.endpoint.removeprefix("http://")
    assert {seen.authorization for seen in hub.seen if seen.host == hub_host} == {f"Bearer {READ_TOKEN}"}
    assert {seen.authorization for seen in hub.seen if seen.host != hub_host} == {None}


def test_a_token_of_this_machine_is_not_picked_up(hub: Hub, tmp_path: Path, repository: Repository) -> None:
    script = (
        "import sys; from pathlib import Path; from flattengpt_core.hub import fetch_model, look_up\n"
        "repo_id, endpoint, cache = sys.argv[1:]\n"
        "look_up(repo_id, revision='main', token=None, endpoint=endpoint)\n"
        "fetch_model(repo_id, revision='main', token=None, endpoint=endpoint, cache_dir=Path(cache))"
    )
    subprocess.run(
        [sys.executable, "-c", script, REPO, hub.endpoint, str(tmp_path / "cache")],
        env=os.environ | {"HF_TOKEN": READ_TOKEN},
        check=True,
    )
    assert {seen.authorization for seen in hub.seen} == {None}


@pytest.mark.parametrize(
    ("repo_id", "revision", "token", "words"),
    [
        ("acme/nothing", "main", READ_TOKEN, "has no model acme/nothing"),
        (REPO, "v9", READ_TOKEN, "has no revision 'v9'"),
        (REPO, "0" * 40, READ_TOKEN, "has no revision"),
        (REPO, "main", "hf_test_expired", r"refused acme/tiny \(401\)"),
    ],
)
@pytest.mark.usefixtures("repository")
def test_what_cannot_be_had_is_said(
    hub: Hub, tmp_path: Path, repo_id: str, revision: str, token: str, words: str
) -> None:
    with pytest.raises(ModelNotFound, match=words) as caught:
        look_up(repo_id, revision=revision, token=token, endpoint=hub.endpoint)
    assert token not in str(caught.value.as_dict())
    with pytest.raises(ModelNotFound, match=words):
        fetch(hub, tmp_path, repo_id=repo_id, revision=revision, token=token)


def test_a_gated_model_says_what_to_do(hub: Hub, tmp_path: Path, repository: Repository) -> None:
    repository.gated = True
    for attempt in (
        lambda: look_up(REPO, revision="main", token=None, endpoint=hub.endpoint),
        lambda: fetch(hub, tmp_path),
    ):
        with pytest.raises(ModelGated, match=r"is gated: accept its terms on the Hub.*HF_TOKEN"):
            attempt()


def test_the_token_of_a_request_is_called_so(hub: Hub, repository: Repository) -> None:
    repository.private = True
    with pytest.raises(ModelNotFound, match="the request's Hub-Token may not read it"):
        look_up(REPO, revision="main", token=None, endpoint=hub.endpoint, token_name=REQUESTS_TOKEN)


def test_whether_a_repository_holds_files(hub: Hub, repository: Repository) -> None:
    hub.repositories["acme/empty"] = new_repository("acme/empty", private=False)
    for repo_id, holds in [(REPO, True), ("acme/empty", False), ("acme/none", False)]:
        assert holds_files(repo_id, token=None, endpoint=hub.endpoint) is holds
    hub.fail(".*", 503)
    with pytest.raises(HubUnreachable):
        holds_files(REPO, token=None, endpoint=hub.endpoint)


def test_pickled_weights_are_refused(hub: Hub, tmp_path: Path, files: dict[str, bytes]) -> None:
    pickled = {name: content for name, content in files.items() if not name.endswith(".safetensors")}
    hub.add(REPO, pickled | {"pytorch_model.bin": b"pickle"})
    with pytest.raises(UnsupportedModel, match=r"no config\.json with safetensors"):
        look_up(REPO, revision="main", token=None, endpoint=hub.endpoint)
    with pytest.raises(UnsupportedModel, match="pickled weights"):
        inspect(fetch(hub, tmp_path))


@pytest.mark.usefixtures("repository")
def test_a_hub_in_trouble(hub: Hub, tmp_path: Path) -> None:
    hub.fail(".*", 503)
    with pytest.raises(HubUnreachable):
        look_up(REPO, revision="main", token=None, endpoint=hub.endpoint)
    with pytest.raises(HubUnreachable):
        fetch(hub, tmp_path)


def test_no_hub(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = Hub(port=unused.getsockname()[1])
        with pytest.raises(HubUnreachable, match="does not answer"):
            look_up(REPO, revision="main", token=None, endpoint=nowhere.endpoint)
        with pytest.raises(HubUnreachable, match="does not answer"):
            fetch(nowhere, tmp_path)


def test_without_the_hub_wikitext2_says_what_to_do(tmp_path: Path) -> None:
    script = (
        "from flattengpt_core.errors import CalibrationNotFound; from flattengpt_core.hub import load_wikitext2\n"
        "try: load_wikitext2('evaluation')\n"
        "except CalibrationNotFound as error: print(error.message)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "wikitext2 cannot be loaded" in said.stdout
    assert "python-docs" in said.stdout
