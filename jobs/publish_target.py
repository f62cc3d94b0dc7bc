"""Where results may be published besides the Hub: URLs of folders and buckets below those that the operator names.

Compares texts only: nothing is looked at or written here.
"""

import re

from flattengpt_core.errors import InvalidRequest
from jobs.settings import Settings

MAX_URL = 400

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ROOT = re.compile(rf"(file:///{_NAME}|s3://{_NAME})(/{_NAME})*")
_URL = re.compile(rf"(file://|s3://{_NAME})(/{_NAME})+")


def check(url: str) -> str:
    """The URL, if it is one of a folder or of a place in a bucket. Raises ValueError."""
    if not _URL.fullmatch(url):
        raise ValueError(
            "give s3://BUCKET/NAMES or file:///NAMES, with names of letters, digits, '.', '_' and '-' that begin with "
            "a letter or digit, and without a slash at the end"
        )
    return url


def roots(settings: Settings) -> list[str]:
    """The URLs below which the operator lets results be published.

    Raises:
        InvalidRequest: one of them is none.
    """
    given = [root.strip().rstrip("/") for root in settings.publish_urls.split(",") if root.strip()]
    for root in given:
        if not _ROOT.fullmatch(root):
            raise InvalidRequest(
                f"{root!r} is neither s3://BUCKET/NAMES nor file:///NAMES: its operator has to mend "
                "FLATTENGPT_PUBLISH_URLS."
            )
    return given


def root_of(url: str, settings: Settings) -> str:
    """The operator's URL that this one is below. Raises InvalidRequest if there is none."""
    allowed = roots(settings)
    for root in allowed:
        if url.startswith(f"{root}/"):
            return root
    places = f"below {' or '.join(allowed)} only" if allowed else "on the Hub only (FLATTENGPT_PUBLISH_URLS is not set)"
    raise InvalidRequest(f"This service publishes {places}.", field="publish.url")
