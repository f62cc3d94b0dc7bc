"""Turns the MODEL of a command into files of this machine."""

import os
from pathlib import Path

from cli.screen import err
from flattengpt_core.checkpoint import HubModel, resolve
from jobs.settings import Settings


def fetch(model: str, *, revision: str, settings: Settings) -> Path:
    """The model's folder or .gguf file, downloaded first if it is the Hub's. Raises FlattenGPTError.

    Takes the Hub's token out of the environment: nothing but this step needs it, which has it from the settings.
    """
    os.environ.pop("HF_TOKEN", None)
    located = resolve(model, settings.models_dir, allow_paths=True)
    if not isinstance(located, HubModel):
        return located.path
    from flattengpt_core.hub import fetch_model

    err.print(f"fetching {located.repo_id} from {settings.hf_endpoint}", soft_wrap=True)
    return fetch_model(
        located.repo_id,
        revision=revision,
        token=settings.hf_token.get_secret_value() if settings.hf_token else None,
        endpoint=settings.hf_endpoint,
        cache_dir=settings.data_dir.absolute() / "hub",
    )
