"""Puts a result on the Hugging Face Hub, into a repository of its own, and never over anyone else's.

Knows a folder and where it goes, and of the job only its id. The token goes to the Hub's client and nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import HfHubHTTPError
from pydantic import SecretStr
from stamina import RetryingCaller

from flattengpt_core.hub import MADE_BY_THE_HUB, WORKERS_TOKEN, TokenName
from jobs.errors import PublishConflict, PublishFailed
from worker.hub_answers import explain
from worker.hub_client import set_up_client
from worker.interruptible import LastStep, LeftBehind

TRIES = 4
CommitOperation = CommitOperationAdd | CommitOperationDelete
_EXISTS_PERHAPS = (401, 402, 403, 409)
"""Answers to creating a repository that may be there: a token for that repository alone can only write to it."""


@dataclass(frozen=True)
class Destination:
    """The repository that a job's result goes to. overwrite: whether it may replace what others have put there."""

    repo_id: str
    private: bool
    overwrite: bool
    endpoint: str
    job_id: str
    token_name: TokenName

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"{self.endpoint.rstrip('/')}/{self.repo_id}"

    @property
    def commit_message(self) -> str:
        """Names the job, by which a later attempt knows its own commit."""
        return f"FlattenGPT job {self.job_id}"

    @property
    def remedy(self) -> str:
        """How to get the result there without running the job again."""
        return (
            f"The job's artifacts are kept: to upload them by hand, `flattengpt download {self.job_id} --out result`, "
            f"then `hf upload {self.repo_id} result .{' --private' if self.private else ''}`."
        )


class _Unfinished(PublishFailed):
    """One try failed. pause: as in `hub_answers.Failure`."""

    def __init__(self, message: str, pause: bool | float) -> None:
        super().__init__(message, field="publish")
        self.pause = pause


def publish(
    folder: Path,
    *,
    repo_id: str,
    private: bool,
    token: SecretStr | None,
    endpoint: str,
    job_id: str,
    overwrite: bool = False,
    token_name: TokenName = WORKERS_TOKEN,
    timeout_seconds: float = 60,
    progress: Callable[[int, int], None] = lambda done, total: None,
    commit: LastStep | None = None,
) -> str:
    """Create the repository, upload all of `folder` in one commit that names the job, and give its address.

    Doing it again for the same job uploads what the Hub does not have and commits nothing that is there already. The
    repository then holds the result alone: what was there before goes in the same commit, and stays in the history.

    Args:
        overwrite: whether it may hold what this job did not upload.
        token_name: what errors call the token.
        timeout_seconds: a request that the Hub is silent about for so long is given up, and tried again.
        progress: told the bytes that the Hub has, of how many.
        commit: taken for the commit, before which nothing can be seen in the repository.

    Raises:
        PublishConflict: the repository holds what must not be overwritten, or is public against the request.
        PublishFailed: no token, or the Hub refused or did not answer; the message says what to do.
    """
    to = Destination(repo_id, private, overwrite, endpoint, job_id, token_name)
    if token is None:
        raise PublishFailed(
            f"The result was not uploaded to {repo_id}: the worker has no Hub token. Set HF_TOKEN in the worker's "
            f"environment to one that may write there, or send one with the request (Hub-Token). {to.remedy}",
            field="publish",
        )
    set_up_client(timeout_seconds)
    api = HfApi(endpoint=endpoint, token=token.get_secret_value())
    tries = RetryingCaller(attempts=TRIES, timeout=None, wait_initial=1, wait_max=30)
    return tries(_pause, _upload, api, folder, to, progress, commit or LastStep())


def _pause(error: Exception) -> bool | float:
    return error.pause if isinstance(error, _Unfinished) else False


def _upload(api: HfApi, folder: Path, to: Destination, progress: Callable[[int, int], None], commit: LastStep) -> str:
    """One try. What it raises has nothing of the client's error in its text or its chain."""
    try:
        repository = _own_repository(api, to)
        additions = _additions(folder)
        missing = _missing(additions, repository)
        _send(api, to, missing, progress)
        with commit.taken():
            # The Hub refuses if anyone has committed since; the client commits nothing if there is nothing new.
            head = repository.sha if repository else None
            changes: list[CommitOperation] = [*_deletions(additions, repository), *missing]
            api.create_commit(to.repo_id, changes, commit_message=to.commit_message, parent_commit=head)
    except (PublishConflict, LeftBehind):
        raise
    except Exception as error:
        host, namespace = urlsplit(to.endpoint).hostname or "the Hub", to.repo_id.split("/")[0]
        failure = explain(error, host=host, namespace=namespace, token=to.token_name)
        raise _Unfinished(
            f"The result was not uploaded to {to.repo_id}: {failure.reason} {to.remedy}", failure.pause
        ) from None
    return to.url


def _additions(folder: Path) -> list[CommitOperationAdd]:
    """All files of `folder`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]


def _deletions(additions: Sequence[CommitOperationAdd], repository: ModelInfo | None) -> list[CommitOperationDelete]:
    """What the repository has besides: a shard of another model would be loaded with the result's."""
    siblings = (repository.siblings if repository else None) or []
    there = {sibling.rfilename for sibling in siblings} - MADE_BY_THE_HUB
    return [CommitOperationDelete(path) for path in sorted(there - {one.path_in_repo for one in additions})]


def _missing(additions: Sequence[CommitOperationAdd], repository: ModelInfo | None) -> list[CommitOperationAdd]:
    """The additions but the large ones that the repository has."""
    siblings = (repository.siblings if repository else None) or []
    there = {sibling.rfilename: sibling.lfs.sha256 for sibling in siblings if sibling.lfs}
    return [
        addition
        for addition in additions
        if addition.path_in_repo not in there or addition.upload_info.sha256.hex() != there[addition.path_in_repo]
    ]


def _send(
    api: HfApi, to: Destination, additions: Sequence[CommitOperationAdd], progress: Callable[[int, int], None]
) -> None:
    """Bring what is large to the Hub's storage, a file of weights at a time, so that each is there for good."""
    done, total = 0, sum(addition.upload_info.size for addition in additions)
    weights = [addition for addition in additions if addition.path_in_repo.endswith(".safetensors")]
    for batch in [*([file] for file in weights), additions]:
        progress(done, total)
        api.preupload_lfs_files(to.repo_id, batch, free_memory=False)  # skips what it has sent already
        done += sum(addition.upload_info.size for addition in batch)


def _own_repository(api: HfApi, to: Destination) -> ModelInfo | None:
    """The repository as it is, or None if it was created just now. Raises PublishConflict if it is not ours."""
    try:
        api.create_repo(to.repo_id, private=to.private)
        return None
    except HfHubHTTPError as refusal:
        if refusal.response.status_code not in _EXISTS_PERHAPS:
            raise
        try:
            info = api.model_info(to.repo_id, files_metadata=True)
        except HfHubHTTPError:
            raise refusal from None
    if to.private and info.private is False:
        raise PublishConflict(
            f"The result was not uploaded: {to.repo_id} exists and is public, but the job asks for a private "
            f"repository. Make it private, or choose another name. {to.remedy}",
            field="publish.repo_id",
        )
    if not to.overwrite and not _is_empty(info) and not _is_ours(api, to):
        raise PublishConflict(
            f"The result was not uploaded: {to.repo_id} exists and its last commit is not this job's. Choose another "
            f'name, an empty repository, or "overwrite": true. {to.remedy}',
            field="publish.repo_id",
        )
    return info


def _is_empty(info: ModelInfo) -> bool:
    return {sibling.rfilename for sibling in info.siblings or []} <= MADE_BY_THE_HUB


def _is_ours(api: HfApi, to: Destination) -> bool:
    commits = api.list_repo_commits(to.repo_id)
    return bool(commits) and commits[0].title == to.commit_message
