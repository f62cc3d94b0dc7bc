"""What is taken from the Hugging Face Hub: a model's facts, its files at a pinned commit, WikiText-2.

The only core module that uses the network or a token. Never takes pickled weights or code. Imports no torch.
"""

import errno
import json
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from flattengpt_core.errors import (
    CalibrationNotFound,
    FlattenGPTError,
    ModelGated,
    ModelNotFound,
    ModelRenamed,
    UnsupportedModel,
)
from flattengpt_core.families import supported
from flattengpt_core.licence import CARD, FIELDS, Licence, licence_in
from flattengpt_core.texts import Part, join_rows

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*", "USE_POLICY*", CARD)
LOOK_UP_SECONDS = 3.0
MADE_BY_THE_HUB = frozenset((".gitattributes",))
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WIKITEXT2_SPLITS: dict[Part, str] = {"calibration": "train", "validation": "validation", "evaluation": "test"}


class HubUnreachable(FlattenGPTError):
    code = "hub_unreachable"
    status = 503
    title = "The Hugging Face Hub does not answer"
    retryable = True


@dataclass(frozen=True)
class TokenName:
    """What messages call the token that was used. whose: a possessive. name: where it was given."""

    whose: str
    name: str


WORKERS_TOKEN = TokenName("the worker's", "HF_TOKEN")
REQUESTS_TOKEN = TokenName("the request's", "Hub-Token")


@dataclass(frozen=True)
class HubCheckpoint:
    """What the Hub says of a model. commit: what the revision means now. config: its config.json."""

    commit: str
    config: dict[str, Any]
    licence: Licence | None


def look_up(
    repo_id: str, *, revision: str, token: str | None, endpoint: str, token_name: TokenName = WORKERS_TOKEN
) -> HubCheckpoint:
    """Ask the Hub for a model's commit, config and licence, without its weights.

    Raises:
        ModelNotFound: the Hub knows no such model or revision.
        ModelGated, ModelRenamed: the token may not read it; it has another name.
        UnsupportedModel: it has no safetensors.
        HubUnreachable: the Hub does not answer.
    """
    api = HfApi(endpoint=endpoint, token=token or False)
    try:
        info = api.model_info(repo_id, revision=revision, timeout=LOOK_UP_SECONDS)
        _refuse_old_name(repo_id, info.id)
        names = {sibling.rfilename for sibling in info.siblings or []}
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            raise UnsupportedModel(f"{repo_id} has no config.json with safetensors. {supported()}", field="model")
        # Not from a cache: it would answer for a token that may no longer read the model.
        with TemporaryDirectory() as scratch:
            file = hf_hub_download(
                repo_id,
                "config.json",
                revision=info.sha,
                token=token or False,
                endpoint=endpoint,
                etag_timeout=LOOK_UP_SECONDS,
                cache_dir=scratch,
            )
            config = json.loads(Path(file).read_text(encoding="utf-8"))
    except FlattenGPTError:
        raise
    except Exception as error:
        raise _explained(error, repo_id, revision, token_name) from None
    card = {name: info.card_data.get(name) for name in FIELDS} if info.card_data else {}
    return HubCheckpoint(str(info.sha), config, licence_in(card))


def holds_files(repo_id: str, *, token: str | None, endpoint: str) -> bool:
    """Whether the token sees a model repository of this name with more in it than the Hub has put there.

    Raises:
        HubUnreachable: the Hub does not answer.
    """
    try:
        info = HfApi(endpoint=endpoint, token=token or False).model_info(repo_id, timeout=LOOK_UP_SECONDS)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            return False
        raise _unreachable(repo_id) from None
    except Exception:
        raise _unreachable(repo_id) from None
    return bool({sibling.rfilename for sibling in info.siblings or []} - MADE_BY_THE_HUB)


def fetch_model(
    repo_id: str,
    *,
    revision: str,
    token: str | None,
    endpoint: str,
    cache_dir: Path,
    token_name: TokenName = WORKERS_TOKEN,
) -> Path:
    """Download the checkpoint at `revision` and give its folder; what is already there is not fetched again.

    Raises:
        ModelNotFound: missing, or no such revision; the message says what to do.
        ModelGated, ModelRenamed: as for `look_up`; a commit is fetched also under an old name.
        HubUnreachable: the Hub does not answer and the model is not in the cache.
    """
    try:
        if not _COMMIT.fullmatch(revision):  # else it was looked up when it was pinned
            _refuse_renamed(repo_id, HfApi(endpoint=endpoint, token=token or False))
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token or False,
                endpoint=endpoint,
                cache_dir=cache_dir,
                allow_patterns=list(FILES),
            )
        )
    except FlattenGPTError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise  # this machine's trouble, not the Hub's
        raise _explained(error, repo_id, revision, token_name) from None


def _refuse_renamed(repo_id: str, api: HfApi) -> None:
    """Raises ModelRenamed; whatever else is wrong, the download will tell."""
    try:
        info = api.model_info(repo_id, timeout=LOOK_UP_SECONDS)
    except Exception:
        return
    _refuse_old_name(repo_id, info.id)


def _refuse_old_name(asked: str, found: str) -> None:
    # The card, the licence's rules and other jobs go by the name.
    if found != asked:
        raise ModelRenamed(f"{asked} is called {found} now: use that name.", field="model")


def load_wikitext2(part: Part) -> str:
    """WikiText-2 (raw), the split for this part, rows joined by blank lines.

    Raises:
        CalibrationNotFound: the Hub cannot be reached and the text is not in the cache of `datasets`.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=_WIKITEXT2_SPLITS[part])["text"]
    except Exception as error:
        raise CalibrationNotFound(
            f"wikitext2 cannot be loaded from the Hugging Face Hub ({type(error).__name__}): check the worker's "
            "network and HF_ENDPOINT, or use a text that needs no network (python-docs).",
            field="calibration.dataset",
        ) from None
    return join_rows(list(rows))


def _explained(error: Exception, repo_id: str, revision: str, token: TokenName) -> FlattenGPTError:
    """The Hub's error in words that say what to do. The client's own text is left out: it may hold request data."""
    match error:
        case GatedRepoError():
            return ModelGated(
                f"{repo_id} is gated: accept its terms on the Hub, as the account that {token.whose} token "
                f"({token.name}) is of, and let the token read it.",
                field="model",
            )
        case RepositoryNotFoundError():
            return ModelNotFound(
                f"The Hub has no model {repo_id}, or it is private and {token.whose} {token.name} may not read it.",
                field="model",
            )
        case RevisionNotFoundError():
            return ModelNotFound(f"{repo_id} has no revision {revision!r}.", field="revision")
        case LocalEntryNotFoundError():
            return _unreachable(repo_id)
        case EntryNotFoundError():
            return ModelNotFound(f"{repo_id} lacks a file that it lists; try again or pin a revision.", field="model")
        case HfHubHTTPError() if error.response is not None and error.response.status_code == 401:
            return ModelNotFound(
                f"The Hub refused {repo_id} (401): {token.whose} {token.name} is wrong, expired or revoked.",
                field="model",
            )
        case HfHubHTTPError() if error.response is not None and error.response.status_code < 500:
            return ModelNotFound(f"The Hub refused {repo_id} ({error.response.status_code}).", field="model")
        case _:
            return _unreachable(repo_id)


def _unreachable(repo_id: str) -> HubUnreachable:
    return HubUnreachable(f"The Hub does not answer, so {repo_id} cannot be loaded; try again later.", field="model")
