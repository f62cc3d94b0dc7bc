"""Puts a result on the Hugging Face Hub, into a repository of its own, and never over anyone else's.

Knows a folder and where it goes, and of the job only its id. The token goes to the Hub's client and nowhere else.
"""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, ModelInfo
from huggingface_hub.errors import HfHubHTTPError
from pydantic import SecretStr
from stamina import RetryingCaller

from jobs.errors import PublishConflict, PublishFailed
from worker.hub_answers import explain

TRIES = 4
_MADE_BY_THE_HUB = {".gitattributes"}
_EXISTS_PERHAPS = (401, 402, 403, 409)
"""Answers to creating a repository that may be there: a token for that repository alone can only write to it."""


@dataclass(frozen=True)
class Destination:
    """The repository that a job's result goes to."""

    repo_id: str
    private: bool
    endpoint: str
    job_id: str

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


def publish(folder: Path, *, repo_id: str, private: bool, token: SecretStr | None, endpoint: str, job_id: str) -> str:
    """Create the repository, upload all of `folder` in a commit that names the job, and give the repository's address.

    Doing it again for the same job completes what is missing and commits nothing that is there already.

    Raises:
        PublishConflict: the repository holds what this job did not upload, or is public against the request.
        PublishFailed: no token, or the Hub refused or did not answer; the message says what to do.
    """
    to = Destination(repo_id, private, endpoint, job_id)
    if token is None:
        raise PublishFailed(
            f"The result was not uploaded to {repo_id}: the worker has no Hub token. Set HF_TOKEN in the worker's "
            f"environment to one that may write there. {to.remedy}",
            field="publish",
        )
    api = HfApi(endpoint=endpoint, token=token.get_secret_value())
    return RetryingCaller(attempts=TRIES, timeout=None, wait_initial=1, wait_max=30)(_pause, _upload, api, folder, to)


def _pause(error: Exception) -> bool | float:
    return error.pause if isinstance(error, _Unfinished) else False


def _upload(api: HfApi, folder: Path, to: Destination) -> str:
    """One try. What it raises has nothing of the client's error in its text or its chain."""
    try:
        head = _own_head(api, to)
        # With `parent_commit` the Hub refuses if anyone has committed since.
        api.upload_folder(repo_id=to.repo_id, folder_path=folder, commit_message=to.commit_message, parent_commit=head)
    except PublishConflict:
        raise
    except Exception as error:
        failure = explain(error, host=urlsplit(to.endpoint).hostname or "the Hub", namespace=to.repo_id.split("/")[0])
        raise _Unfinished(
            f"The result was not uploaded to {to.repo_id}: {failure.reason} {to.remedy}", failure.pause
        ) from None
    return to.url


def _own_head(api: HfApi, to: Destination) -> str | None:
    """The newest commit of a repository that exists, None of one just created. Raises PublishConflict if not ours."""
    try:
        api.create_repo(to.repo_id, private=to.private)
        return None
    except HfHubHTTPError as refusal:
        if refusal.response.status_code not in _EXISTS_PERHAPS:
            raise
        try:
            info = api.model_info(to.repo_id)
        except HfHubHTTPError:
            raise refusal from None
    if to.private and info.private is False:
        raise PublishConflict(
            f"The result was not uploaded: {to.repo_id} exists and is public, but the job asks for a private "
            f"repository. Make it private, or choose another name. {to.remedy}",
            field="publish.repo_id",
        )
    if not _is_empty(info) and not _is_ours(api, to):
        raise PublishConflict(
            f"The result was not uploaded: {to.repo_id} exists and its last commit is not this job's. Choose another "
            f"name, or an empty repository. {to.remedy}",
            field="publish.repo_id",
        )
    return info.sha


def _is_empty(info: ModelInfo) -> bool:
    return {sibling.rfilename for sibling in info.siblings or []} <= _MADE_BY_THE_HUB


def _is_ours(api: HfApi, to: Destination) -> bool:
    # The client adds "(part 2)" to the message when it splits a large upload.
    commits = api.list_repo_commits(to.repo_id)
    return bool(commits) and commits[0].title.startswith(to.commit_message)
