"""Where the service is, how it is spoken to, and what its refusals mean."""

import ipaddress
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import SecretStr

from cli.errors import ServiceRefused, ServiceUnreachable
from jobs.settings import ClientSettings

CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0


@dataclass(frozen=True)
class ServiceAddress:
    """A service's URL, and the key for it."""

    url: str
    key: SecretStr | None

    @classmethod
    def of(cls, url: str, key: SecretStr | None) -> "ServiceAddress":
        """With the key of the environment, if none is given."""
        return cls(url, key or ClientSettings().api_key)

    @property
    def connection(self) -> dict[str, Any]:
        """How httpx opens a client for it."""
        return {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {self.key.get_secret_value()}"} if self.key else {},
            "timeout": httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            "trust_env": not _is_loopback(self.url),  # a proxy cannot reach this machine's own loopback
        }

    def refusal(self, response: httpx.Response) -> ServiceRefused:
        """The problem that the service answered with; the answer is read already."""
        try:
            problem = response.json()
            message = str(problem.get("detail") or problem["title"])
        except (ValueError, KeyError, AttributeError):
            message = f"{self.url} answered {response.status_code} {response.reason_phrase}; is this the service?"
        if response.status_code == httpx.codes.UNAUTHORIZED:
            message = (
                f"The service at {self.url} {'refuses this' if self.key else 'asks for an'} API key: set "
                "FLATTENGPT_API_KEY to one that `flattengpt keys create` made on the service's side."
            )
        return ServiceRefused(
            message, http_status=response.status_code, retry_after_seconds=_seconds(response.headers.get("retry-after"))
        )

    def unreachable(self, error: Exception) -> ServiceUnreachable:
        """What a broken connection means."""
        return ServiceUnreachable(
            f"No answer from the service at {self.url} ({type(error).__name__}): start it with `flattengpt serve`, "
            "or give its address with --url or FLATTENGPT_URL."
        )


def _seconds(retry_after: str | None) -> int | None:
    return int(retry_after) if retry_after is not None and retry_after.isascii() and retry_after.isdigit() else None


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
