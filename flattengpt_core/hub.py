"""What is taken from the Hugging Face Hub: a model's facts, its files at a pinned commit, WikiText-2.

The only core module that uses the network or a token. Never takes pickled weights or code. Imports no torch.
"""

import errno
import json
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

from flattengpt_core.errors import CalibrationNotFound, FlattenGPTError, ModelNotFound, UnsupportedModel
from flattengpt_core.families import supported
from flattengpt_core.texts import Part, join_rows

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*", "USE_POLICY*")
LOOK_UP_SECONDS = 3.0
_WIKITEXT2_SPLITS: dict[Part, str] = {"calibration": "train", "validation": "validation", "evaluation": "test"}


class HubUnreachable(FlattenGPTError):
    code = "hub_unreachable"
    status = 503
    title = "The Hugging Face Hub does not answer"
    retryable = True


@dataclass(frozen=True)
class HubCheckpoint:
    """What the Hub says of a model. commit: what the revision means now. config: its config.json."""

    commit: str
    config: dict[str, Any]


def look_up(repo_id: str, *, revision: str, token: str | None, endpoint: str) -> HubCheckpoint:
    """Ask the Hub for a model's commit and config, without its weights.

    Raises:
        ModelNotFound, UnsupportedModel: the Hub knows no such model or revision, or it has no safetensors.
        HubUnreachable: the Hub does not answer.
    """
    api = HfApi(endpoint=endpoint, token=token or False)
    try:
        info = api.model_info(repo_id, revision=revision, timeout=LOOK_UP_SECONDS)
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
        raise _explained(error, repo_id, revision) from None
    return HubCheckpoint(str(info.sha), config)


def fetch_model(repo_id: str, *, revision: str, token: str | None, endpoint: str, cache_dir: Path) -> Path:
    """Download the checkpoint at `revision` and give its folder; what is already there is not fetched again.

    Raises:
        ModelNotFound: gated, missing, or no such revision; the message says what to do.
        HubUnreachable: the Hub does not answer and the model is not in the cache.
    """
    try:
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
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise  # this machine's trouble, not the Hub's
        raise _explained(error, repo_id, revision) from None


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


def _explained(error: Exception, repo_id: str, revision: str) -> FlattenGPTError:
    """The Hub's error in words that say what to do. The client's own text is left out: it may hold request data."""
    match error:
        case GatedRepoError():
            return ModelNotFound(
                f"{repo_id} is gated: accept its terms on the Hub and give the worker a token (HF_TOKEN) that may "
                "read it.",
                field="model",
            )
        case RepositoryNotFoundError():
            return ModelNotFound(
                f"The Hub has no model {repo_id}, or it is private and the worker's HF_TOKEN may not read it.",
                field="model",
            )
        case RevisionNotFoundError():
            return ModelNotFound(f"{repo_id} has no revision {revision!r}.", field="revision")
        case LocalEntryNotFoundError():
            return _unreachable(repo_id)
        case EntryNotFoundError():
            return ModelNotFound(f"{repo_id} lacks a file that it lists; try again or pin a revision.", field="model")
        case HfHubHTTPError() if error.response is not None and error.response.status_code < 500:
            return ModelNotFound(f"The Hub refused {repo_id} ({error.response.status_code}).", field="model")
        case _:
            return _unreachable(repo_id)


def _unreachable(repo_id: str) -> HubUnreachable:
    return HubUnreachable(f"The Hub does not answer, so {repo_id} cannot be loaded; try again later.", field="model")
