"""Publishing through the real client, against a local server that speaks the Hub's protocol."""

import logging
import os
import random
import shlex
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stamina
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory
from pydantic import SecretStr

from flattengpt_core.hub import REQUESTS_TOKEN
from jobs.errors import PublishConflict, PublishFailed
from tests.hub.repositories import new_repository
from tests.hub.state import READ_TOKEN, WRITE_TOKEN, XET_TOKEN, Break, Hub
from tests.hub_server import running_hub
from tests.processes import wait_until
from worker.interruptible import LastStep, LeftBehind
from worker.publish import TRIES, publish

JOB = "01KB0000000000000000000001"
REPO = "acme/tiny-flat4"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(autouse=True)
def _the_client_as_it_was() -> Iterator[None]:
    yield
    set_client_factory(default_client_factory)


@pytest.fixture
def by_lfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files go by git-lfs, through Python, instead of by Xet."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def impatient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client without its own pauses after a broken connection, which grow up to 8 s."""
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def no_pauses() -> Iterator[None]:
    """All tries, without the pauses between them."""
    with stamina.set_testing(True, attempts=TRIES):
        yield


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result folder: a card, JSON, weights of more than one chunk, and a file in a folder."""
    folder = tmp_path / "result"
    (folder / "figures").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# tiny-flat4\n")
    (folder / "config.json").write_text('{"num_hidden_layers": 4}')
    (folder / "figures" / "similarity.svg").write_text("<svg/>")
    (folder / "model.safetensors").write_bytes(random.Random(0).randbytes(300_000))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(
    hub: Hub,
    folder: Path,
    *,
    token: str | None = WRITE_TOKEN,
    job: str = JOB,
    repo_id: str = REPO,
    private: bool = True,
    **more: Any,
) -> str:
    secret = SecretStr(token) if token is not None else None
    return publish(folder, repo_id=repo_id, private=private, token=secret, endpoint=hub.endpoint, job_id=job, **more)


def published(hub: Hub) -> dict[str, bytes]:
    return {path: content for path, content in hub.repositories[REPO].head.files.items() if path != ".gitattributes"}


def test_a_private_repository_with_every_file(hub: Hub, result: Path) -> None:
    assert put(hub, result) == f"{hub.endpoint}/{REPO}"
    assert hub.repositories[REPO].private
    assert hub.repositories[REPO].head.title == f"FlattenGPT job {JOB}"
    assert published(hub) == contents(result)


def test_a_public_repository_if_asked(hub: Hub, result: Path) -> None:
    put(hub, result, private=False)
    assert not hub.repositories[REPO].private


@pytest.mark.usefixtures("by_lfs")
def test_without_xet_large_files_go_by_lfs(hub: Hub, result: Path) -> None:
    put(hub, result)
    assert hub.requests("PUT /storage/")
    assert published(hub) == contents(result)


def test_again_for_the_same_job_sends_and_commits_nothing(hub: Hub, result: Path) -> None:
    put(hub, result)
    commits = len(hub.repositories[REPO].commits)
    assert len(hub.uploaded) == 1
    put(hub, result)
    assert len(hub.repositories[REPO].commits) == commits
    assert len(hub.uploaded) == 1


PUBLISH = (
    "import sys; from pathlib import Path; from pydantic import SecretStr; from worker.publish import publish\n"
    "folder, repo_id, token, endpoint, job = sys.argv[1:]\n"
    "publish(Path(folder), repo_id=repo_id, private=True, token=SecretStr(token), endpoint=endpoint, job_id=job)"
)


@pytest.mark.parametrize("disable_xet", ["0", "1"], ids=["xet", "lfs"])
def test_kill_9_in_mid_upload_and_the_next_sends_the_rest(
    hub: Hub, result: Path, tmp_path: Path, disable_xet: str
) -> None:
    """Of two files of weights, where the first was through."""
    second = random.Random(1).randbytes(400_000)
    (result / "model2.safetensors").write_bytes(second)
    environment = os.environ | {"HF_HUB_DISABLE_XET": disable_xet, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", PUBLISH, str(result), REPO, WRITE_TOKEN, hub.endpoint, JOB]
    bodies = "PUT /storage/|POST /storage/xet/.*/v1/xorbs"
    hub.fail(bodies, Break.NONE, times=1)
    hub.fail(bodies, Break.SILENCE, times=1)
    killed = subprocess.Popen(command, env=environment)
    wait_until(lambda: len(hub.requests(bodies)) == 2, what="the second file")
    killed.kill()
    killed.wait()
    assert len(hub.uploaded) == 1
    assert published(hub) == {}
    subprocess.run(command, env=environment, check=True)
    assert len(hub.uploaded) == 2
    assert len(second) <= hub.uploaded[1] < len(second) + 10_000
    assert published(hub) == contents(result)


def test_progress_tells_the_bytes_that_are_there(hub: Hub, result: Path) -> None:
    (result / "model2.safetensors").write_bytes(random.Random(1).randbytes(1_000))
    told: list[tuple[int, int]] = []
    put(hub, result, progress=lambda done, total: told.append((done, total)))
    total = sum(len(content) for content in contents(result).values())
    assert told == [(0, total), (300_000, total), (301_000, total)]


def test_a_commit_that_nobody_waits_for_is_not_begun(hub: Hub, result: Path) -> None:
    commit = LastStep()
    assert commit.close()
    with pytest.raises(LeftBehind):
        put(hub, result, commit=commit)
    assert hub.uploaded
    assert published(hub) == {}


def test_a_later_attempt_replaces_what_an_earlier_one_of_the_job_left(hub: Hub, result: Path) -> None:
    put(hub, result)
    (result / "README.md").write_text("---\nlibrary_name: transformers\n---\n# measured anew\n")
    put(hub, result)
    assert published(hub) == contents(result)


def test_an_empty_repository_is_used(hub: Hub, result: Path) -> None:
    hub.repositories[REPO] = new_repository(REPO, private=True)
    put(hub, result)
    assert published(hub) == contents(result)


def test_a_token_that_can_write_to_the_repository_but_not_create_one(hub: Hub, result: Path) -> None:
    hub.repositories[REPO] = new_repository(REPO, private=True)
    hub.fail("POST /api/repos/create", 403)
    put(hub, result)
    assert published(hub) == contents(result)


@pytest.mark.parametrize("title", ["by hand", "FlattenGPT job 01KB0000000000000000000002"])
def test_what_this_job_did_not_make_is_left_alone(hub: Hub, result: Path, title: str) -> None:
    repository = hub.add(REPO, {"model.safetensors": b"someone's work"}, private=True, title=title)
    with pytest.raises(PublishConflict, match="last commit is not this job's") as caught:
        put(hub, result)
    assert caught.value.code == "publish_conflict"
    assert repository.head.title == title
    assert not hub.requests("POST .*/(preupload|commit)/")


def test_what_was_changed_since_is_left_alone(hub: Hub, result: Path) -> None:
    put(hub, result)
    repository = hub.repositories[REPO]
    edited = repository.add("Describe the training data", repository.head.files | {"README.md": b"by hand"})
    with pytest.raises(PublishConflict):
        put(hub, result)
    assert repository.head == edited


def test_overwrite_leaves_the_result_alone_in_the_repository(hub: Hub, result: Path) -> None:
    """A shard of what was there must not be loaded with the result's; it stays in the history."""
    before = {"model.safetensors": b"someone's work", "model-00001-of-00002.safetensors": b"a shard", "notes.txt": b""}
    repository = hub.add(REPO, before, private=True)
    for _ in range(2):
        put(hub, result, overwrite=True)
        assert published(hub) == contents(result)
        assert [commit.title for commit in repository.commits[-2:]] == ["by hand", f"FlattenGPT job {JOB}"]
    assert repository.commits[-2].files.items() >= before.items()


def test_overwrite_does_not_make_a_private_result_public(hub: Hub, result: Path) -> None:
    hub.add(REPO, {"config.json": b"{}"}, private=False)
    with pytest.raises(PublishConflict, match="is public"):
        put(hub, result, overwrite=True)


def test_the_token_of_a_request_is_called_so(hub: Hub, result: Path) -> None:
    with pytest.raises(PublishFailed, match=r"does not accept the request's token \(401\): Hub-Token is wrong"):
        put(hub, result, token="hf_test_expired", token_name=REQUESTS_TOKEN)


def test_a_private_result_never_goes_to_a_public_repository(hub: Hub, result: Path) -> None:
    hub.repositories[REPO] = new_repository(REPO, private=False)
    with pytest.raises(PublishConflict, match="is public"):
        put(hub, result)
    assert published(hub) == {}


def test_no_token(hub: Hub, result: Path) -> None:
    with pytest.raises(PublishFailed, match="Set HF_TOKEN in the worker's environment"):
        put(hub, result, token=None)
    assert hub.seen == []


def test_a_wrong_token(hub: Hub, result: Path) -> None:
    with pytest.raises(PublishFailed, match=r"does not accept the worker's token \(401\)"):
        put(hub, result, token="hf_test_expired")
    assert len(hub.requests("POST /api/repos/create")) == 1


@pytest.mark.parametrize(("token", "repo_id"), [(READ_TOKEN, REPO), (WRITE_TOKEN, "others/tiny-flat4")])
def test_a_token_without_the_right(hub: Hub, result: Path, token: str, repo_id: str) -> None:
    with pytest.raises(PublishFailed, match=rf"\(403\): give HF_TOKEN write access to {repo_id.split('/')[0]}"):
        put(hub, result, token=token, repo_id=repo_id)


@pytest.mark.parametrize(
    ("status", "words", "tries"),
    [
        (402, "asks for payment", 1),
        (404, "does not find it", 1),
        (409, "exists already", TRIES),
        (418, r"refused the upload \(418\)", 1),
        (429, "limits the worker's requests", TRIES),
        (500, r"is in trouble \(500\)", TRIES),
        (503, r"is in trouble \(503\)", TRIES),
    ],
)
@pytest.mark.usefixtures("no_pauses")
def test_refusals_are_readable(hub: Hub, result: Path, status: int, words: str, tries: int) -> None:
    hub.fail("POST /api/repos/create", status, message="moon-landing said no")
    with pytest.raises(PublishFailed, match=words) as caught:
        put(hub, result)
    assert caught.value.code == "publish_failed"
    assert caught.value.field == "publish"
    assert "artifacts are kept" in caught.value.message
    assert "moon-landing" not in caught.value.message
    assert len(hub.requests("POST /api/repos/create")) == tries


def test_retry_after_is_kept(hub: Hub, result: Path) -> None:
    hub.fail("POST /api/repos/create", 429, times=1, retry_after="2")
    started = time.monotonic()
    put(hub, result)
    assert time.monotonic() - started > 2
    assert published(hub) == contents(result)


def test_the_hubs_own_limit_header_is_kept(hub: Hub, result: Path) -> None:
    hub.fail("POST /api/repos/create", 429, times=1, ratelimit='"api";r=0;t=1')
    put(hub, result)
    assert published(hub) == contents(result)


def test_a_long_pause_is_not_waited_for(hub: Hub, result: Path) -> None:
    hub.fail("POST /api/repos/create", 429, retry_after="3600")
    with pytest.raises(PublishFailed, match="in 3600 s"):
        put(hub, result)
    assert len(hub.requests("POST /api/repos/create")) == 1


def test_a_date_in_retry_after_is_kept(hub: Hub, result: Path) -> None:
    """By the Hub's clock, which is an hour behind here."""
    now = datetime.now(UTC) - timedelta(hours=1)
    after, date = (format_datetime(when, usegmt=True) for when in (now + timedelta(seconds=1), now))
    hub.fail("POST .*/preupload/", 429, times=1, retry_after=after, date=date)
    started = time.monotonic()
    put(hub, result)
    assert 1 < time.monotonic() - started < 20
    assert published(hub) == contents(result)


AFTER_THE_CREATION = pytest.mark.parametrize(
    "request_",
    [
        "POST .*/preupload/",
        "POST .*/lfs/objects/batch",
        "PUT /storage/",
        "POST .*/lfs/objects/verify",
        "POST .*/commit/",
    ],
    ids=["preupload", "batch", "storage", "verify", "commit"],
)


@AFTER_THE_CREATION
@pytest.mark.usefixtures("no_pauses", "by_lfs")
def test_refusals_at_each_step(hub: Hub, result: Path, request_: str) -> None:
    for answer, words, tries in [
        (401, r"does not accept the worker's token \(401\)", 1),
        (403, r"may not write there \(403\)", 1),
        (404, r"does not find it \(404\)", 1),
        (409, r"exists already \(409\)", TRIES),
        (429, r"limits the worker's requests \(429\)", TRIES),
        (502, r"is in trouble \(502\)", TRIES),
        (503, r"is in trouble \(503\)", TRIES),
    ]:
        if "verify" in request_ and tries > 1:
            continue  # the next try finds the file there
        hub.forget()
        hub.fail(request_, answer, message="moon-landing said no")
        with pytest.raises(PublishFailed, match=words) as caught:
            put(hub, result)
        assert "moon-landing" not in caught.value.message
        assert "artifacts are kept" in caught.value.message
        assert len(hub.requests(request_)) == tries, answer
        assert published(hub) == {}


@AFTER_THE_CREATION
@pytest.mark.usefixtures("no_pauses", "by_lfs", "impatient_client")
def test_what_passes_is_overcome_at_each_step(hub: Hub, result: Path, request_: str) -> None:
    for answer in (409, 429, 500, 503, Break.CUT, Break.CUT_UPLOAD, Break.SILENCE):
        hub.forget()
        hub.fail(request_, answer, times=1 if answer is Break.SILENCE else 2)
        put(hub, result, timeout_seconds=0.5 if answer is Break.SILENCE else 60)
        assert published(hub) == contents(result)
        assert len(hub.uploaded) == 1 or answer is Break.SILENCE, answer
        assert [commit.title for commit in hub.repositories[REPO].commits[1:]] == [f"FlattenGPT job {JOB}"], answer


@AFTER_THE_CREATION
@pytest.mark.usefixtures("by_lfs")
def test_no_step_waits_for_as_long_as_the_hub_may_ask(hub: Hub, result: Path, request_: str) -> None:
    for after in ("3600", "Fri, 31 Dec 2999 23:59:59 GMT"):
        hub.forget()
        hub.fail(request_, 429, retry_after=after)
        with pytest.raises(PublishFailed, match=r"\(429\): it may be tried again in \d{4,} s"):
            put(hub, result)
        assert len(hub.requests(request_)) == 1


@pytest.mark.parametrize("request_", ["GET .*/xet-write-token", "POST /storage/xet/.*/v1/xorbs"])
def test_refusals_of_the_storage(hub: Hub, result: Path, request_: str) -> None:
    for answer, words in [(401, r"token \(401\)"), (403, "write access to acme")]:
        hub.forget()
        hub.fail(request_, answer)
        with pytest.raises(PublishFailed, match=words):
            put(hub, result)
        assert len(hub.requests(request_)) == 1


@pytest.mark.usefixtures("no_pauses")
def test_a_hub_without_xet(hub: Hub, result: Path) -> None:
    hub.fail("GET .*/xet-write-token", 404)
    with pytest.raises(PublishFailed, match="needs HF_HUB_DISABLE_XET=1"):
        put(hub, result)


@pytest.mark.usefixtures("no_pauses")
def test_a_hub_that_never_answers(hub: Hub, result: Path) -> None:
    hub.fail("POST /api/repos/create", Break.SILENCE)
    with pytest.raises(PublishFailed, match=r"did not answer in time \(ReadTimeout\).*HUB_TIMEOUT_SECONDS"):
        put(hub, result, timeout_seconds=0.1)
    assert len(hub.requests("POST /api/repos/create")) == TRIES


@pytest.mark.usefixtures("no_pauses", "by_lfs", "impatient_client")
def test_a_large_upload_is_cut_in_the_middle_and_then_stalls(hub: Hub, result: Path) -> None:
    """More than the buffers between the two hold."""
    size = 24 * 1024**2
    (result / "model.safetensors").write_bytes(bytes(size))
    hub.fail("PUT /storage/", Break.CUT_UPLOAD, times=1)
    hub.fail("PUT /storage/", Break.SILENCE, times=1)
    put(hub, result, timeout_seconds=1)
    assert len(hub.requests("PUT /storage/")) == 3
    assert hub.uploaded == [size]
    assert published(hub) == contents(result)


@pytest.mark.usefixtures("no_pauses")
def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: Hub, result: Path) -> None:
    hub.fail("POST .*/commit/main", Break.UNANSWERED, times=1)
    put(hub, result, timeout_seconds=0.5)
    assert published(hub) == contents(result)
    assert len(hub.repositories[REPO].commits) == 2


@pytest.mark.parametrize("request_", ["POST /api/repos/create", "POST .*/commit/main", "GET .*/xet-write-token"])
@pytest.mark.usefixtures("no_pauses")
def test_a_connection_that_breaks_is_tried_again(hub: Hub, result: Path, request_: str) -> None:
    hub.fail(request_, Break.CUT, times=1)
    put(hub, result)
    assert published(hub) == contents(result)


@pytest.mark.usefixtures("no_pauses")
def test_someone_else_commits_at_the_same_time(hub: Hub, result: Path) -> None:
    hub.fail("POST .*/commit/main", 412, times=1)
    put(hub, result)
    assert published(hub) == contents(result)


@pytest.mark.usefixtures("no_pauses")
def test_no_hub(result: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = Hub(port=unused.getsockname()[1])
        with pytest.raises(PublishFailed, match="check the worker's network and HF_ENDPOINT"):
            put(nowhere, result)


def test_an_impossible_name(hub: Hub, result: Path) -> None:
    with pytest.raises(PublishFailed, match="no valid repository name"):
        put(hub, result, repo_id="acme/tiny--flat4")


def test_the_way_by_hand_works(hub: Hub, result: Path) -> None:
    with pytest.raises(PublishFailed) as caught:
        put(hub, result, token=None)
    command = shlex.split(caught.value.message.split("`")[3])
    assert command[:2] == ["hf", "upload"]
    subprocess.run(
        [str(Path(sys.executable).with_name("hf")), *command[1:]],
        cwd=result.parent,
        env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": WRITE_TOKEN},
        check=True,
        capture_output=True,
    )
    assert published(hub) == contents(result)
    assert hub.repositories[REPO].private


@pytest.mark.usefixtures("no_pauses")
def test_the_token_reaches_the_hub_and_nothing_else(
    hub: Hub, result: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    put(hub, result)
    hub_host = hub.endpoint.removeprefix("http://")
    assert {seen.authorization for seen in hub.seen if seen.host == hub_host} == {f"Bearer {WRITE_TOKEN}"}
    assert {seen.authorization for seen in hub.seen if seen.host != hub_host} == {f"Bearer {XET_TOKEN}"}

    hub.fail("POST", 500, message=f"a server that repeats Bearer {WRITE_TOKEN}")
    with pytest.raises(PublishFailed) as caught:
        put(hub, result)
    written = capfd.readouterr()
    everything = [*traceback.format_exception(caught.value), str(caught.value.as_dict()), caplog.text, *written]
    assert not [text for text in everything if WRITE_TOKEN in text]
    assert all(WRITE_TOKEN.encode() not in content for content in contents(result).values())
