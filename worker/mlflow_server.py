"""Where the MLflow server is, and how its client is to talk to it. Imports nothing of MLflow until it is asked for."""

import importlib.util
import os
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from jobs.errors import MissingExtra, TrackingFailed
from jobs.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

OWN_VARIABLES = ("FLATTENGPT_MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
                 "MLFLOW_TRACKING_TOKEN")  # fmt: skip
"""What leads to the server and opens it: nothing for the process that computes."""

_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Its own defaults wait for minutes."""


def is_installed() -> bool:
    """Whether MLflow's client is, which the extra `mlflow` brings."""
    return importlib.util.find_spec("mlflow") is not None


def connect(settings: Settings) -> "MlflowClient":
    """A client of the settings' server, which has not been asked anything yet.

    A user name and password in the address are handed over as MLflow's own variables of this process, since its errors
    quote the address.

    Raises:
        MissingExtra: MLflow's client is not installed.
        TrackingFailed: the address is none of a server.
    """
    if not is_installed():
        raise MissingExtra(
            "MLflow's client is not installed: pip install 'flattengpt[mlflow]'.",
            field="FLATTENGPT_MLFLOW_TRACKING_URI",
        )
    parts = urlsplit(settings.mlflow_tracking_uri.get_secret_value())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TrackingFailed("FLATTENGPT_MLFLOW_TRACKING_URI is no address that begins with http:// or https://.")
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    if parts.username is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    from mlflow import MlflowClient  # takes seconds

    return MlflowClient(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
