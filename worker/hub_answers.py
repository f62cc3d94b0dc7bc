"""What a failed request to the Hub means: the reason in words, and whether another try can help.

The client's own error texts, which quote what servers said, never get past this module.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import ceil

import httpx2
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # lazily exported

from flattengpt_core.hub import TokenName

LONGEST_PAUSE_SECONDS = 300
"""A Hub that asks for a longer pause ends the tries."""

_PASSING = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})
"""Answers worth another try; after 409 and 412 it looks at the repository anew, and refuses or goes on."""

_IN_WORDS = re.compile(r"HTTP status \w+ error \((\d{3}) ")


@dataclass(frozen=True)
class Failure:
    """reason: ends a sentence. pause: True for the usual pause before another try, seconds, or False for no other."""

    reason: str
    pause: bool | float


def explain(error: Exception, *, host: str, namespace: str, token: TokenName) -> Failure:
    """What `error`, from the Hub's client, means for an upload to `namespace` on `host` with this token."""
    answer = _http_error(error)
    if answer is not None:
        wait = _asked_pause(answer)
        status = answer.response.status_code
        return Failure(_reason(status, wait, host, namespace, token), _pause(status, wait))
    in_words = _xet_status(error)
    if in_words is not None:
        return Failure(_reason(in_words, None, host, namespace, token), _pause(in_words, None))
    match error:
        case HFValidationError():
            return Failure("that is no valid repository name; see the Hub's rules for names.", False)
        case httpx2.TimeoutException():
            return Failure(
                f"{host} did not answer in time ({type(error).__name__}): check the worker's network, or raise "
                "FLATTENGPT_HUB_TIMEOUT_SECONDS.",
                True,
            )
        case OSError(strerror=str(problem)) if not isinstance(error, ConnectionError | TimeoutError):
            return Failure(f"a file of the result cannot be read ({problem}).", False)
        case _:
            return Failure(
                f"the exchange with {host} broke off ({type(error).__name__}): check the worker's network and "
                "HF_ENDPOINT; a Hub without Xet storage needs HF_HUB_DISABLE_XET=1.",
                True,
            )


def _http_error(error: BaseException | None) -> HfHubHTTPError | None:
    """The Hub's answer behind `error`; the client wraps those that come from its threads."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def _xet_status(error: Exception) -> int | None:
    """The status of an answer to the Xet client, which gives it in words alone; 404 may also mean a Hub without Xet."""
    found = _IN_WORDS.search(str(error)) if type(error) is ConnectionError else None
    return int(found[1]) if found and found[1] != "404" else None


def _asked_pause(answer: HfHubHTTPError) -> int | None:
    """The seconds that the Hub asks to wait, if it does."""
    headers = answer.response.headers
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    retry_after = headers.get("retry-after", "")
    return int(retry_after) if retry_after.isdecimal() else _seconds_until(retry_after, headers.get("date", ""))


def _seconds_until(date: str, now: str) -> int | None:
    """The seconds between two HTTP dates, the second being the Hub's clock; None if the first is no date."""
    then = _instant(date)
    if then is None:
        return None
    return max(0, ceil((then - (_instant(now) or datetime.now(UTC))).total_seconds()))


def _instant(date: str) -> datetime | None:
    try:
        return parsedate_to_datetime(date).replace(tzinfo=UTC)  # HTTP knows no other zone
    except ValueError:
        return None


def _pause(status: int, wait: int | None) -> bool | float:
    if status not in _PASSING:
        return False
    if wait is None:
        return True
    return False if wait > LONGEST_PAUSE_SECONDS else float(wait)


def _reason(status: int, wait: int | None, host: str, namespace: str, token: TokenName) -> str:
    match status:
        case 401:
            return f"{host} does not accept {token.whose} token (401): {token.name} is wrong, expired or revoked."
        case 402:
            return f"{host} asks for payment (402): the storage is used up, or the account's plan does not allow this."
        case 403:
            return (
                f"{token.whose} token may not write there (403): give {token.name} write access to {namespace}, or "
                "choose a place that it may write to."
            )
        case 404:
            return f"{host} does not find it (404): check the name, and that {token.name} may see and write it."
        case 409:
            return f"{host} says that it exists already (409), and {token.whose} token cannot see it."
        case 412:
            return "someone else commits to it at the same time (412)."
        case 429:
            when = "later" if wait is None else f"in {wait} s"
            return f"{host} limits the worker's requests (429): it may be tried again {when}."
        case _ if status >= 500:
            return f"{host} is in trouble ({status}): try again later."
        case _:
            return f"{host} refused the upload ({status})."
