"""Where a webhook may go: how its URL must look, and which addresses may be connected to.

What a request says is checked at submit; what its name resolves to only when a message is sent, on the very addresses
that are connected to. Resolves and sends nothing itself.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from flattengpt_core.errors import InvalidRequest
from jobs.settings import Settings

MAX_URL = 2048

_URL = re.compile(r"[!-\[\]-~]+")  # ASCII that can be seen, without the backslash, which browsers read as a slash
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All else stands for something inside, or for an IPv4 address that a check would have to find (mapped, NAT64 ...)."""
_TUNNELS = tuple(map(ipaddress.IPv6Network, ("2002::/16", "2001::/23", "2001:db8::/32", "3fff::/20")))
"""6to4, Teredo and documentation; newer Pythons know them, too."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Target:
    """A webhook's URL in parts. host: lower case, without brackets. path: with the query, which may hold a token."""

    secure: bool
    host: str
    port: int
    path: str

    @property
    def address(self) -> IPAddress | None:
        """The host if it is an address and no name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None


def parse(url: str) -> Target:
    """The URL's parts. Raises ValueError, whose text quotes nothing of it, if this is no URL to send to."""
    if len(url) > MAX_URL or not _URL.fullmatch(url):
        raise ValueError(f"give a URL of at most {MAX_URL} ASCII characters, without spaces and backslashes")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise ValueError("this is no valid URL") from None
    if parts.scheme not in ("https", "http"):
        raise ValueError("give a URL that begins with https://")
    if "@" in parts.netloc:
        raise ValueError("a URL with a user name or password is not sent to: put a token into the query")
    if "#" in url:
        raise ValueError("give a URL without a fragment (#)")
    _check_host(host)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    secure = parts.scheme == "https"
    return Target(secure, host, (443 if secure else 80) if port is None else port, path)


def _check_host(host: str) -> None:
    """Only one way to write an address: what decimal, hexadecimal and octal ones mean depends on who reads them."""
    if ":" in host:
        if "%" in host or not _is_address(host):
            raise ValueError("the host is no valid IPv6 address")
    elif _NUMBER.fullmatch(host.rpartition(".")[2]):
        if not _is_address(host):
            raise ValueError("the host is no name and no IPv4 address of four decimal numbers")
    elif not _NAME.fullmatch(host):
        raise ValueError("the host is no valid name: write it in ASCII (xn--...), without a dot at its end")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: IPAddress) -> bool:
    """Whether the address is one of the public internet, and nothing that stands for another one."""
    if isinstance(address, ipaddress.IPv6Address) and (
        address not in _GLOBAL_UNICAST or any(address in network for network in _TUNNELS)
    ):
        return False
    return address.is_global and not address.is_multicast


@dataclass(frozen=True)
class TargetRules:
    """What the operator allows. allow_private: addresses inside. allow_http: messages that anyone on the way reads."""

    allow_private: bool
    allow_http: bool

    @classmethod
    def of(cls, settings: Settings) -> "TargetRules":
        """What the settings allow."""
        return cls(settings.webhook_allow_private, settings.webhook_allow_http)

    def check(self, target: Target) -> None:
        """Refuse what can be told from the URL alone. Raises InvalidRequest."""
        if not target.secure and not self.allow_http:
            raise _refused("give a URL that begins with https:// (FLATTENGPT_WEBHOOK_ALLOW_HTTP is not set).")
        if self.allow_private:
            return
        if target.port not in (80, 443) and target.port < 1024:
            raise _refused(f"port {target.port} is another service's: use 443, or one from 1024 on.")
        host, address = target.host, target.address
        inside = "." not in host or host.endswith(".localhost") if address is None else not is_public(address)
        if inside:
            raise _refused(
                f"{host} is not on the public internet: give a full name, or have FLATTENGPT_WEBHOOK_ALLOW_PRIVATE set."
            )

    def allow(self, addresses: Iterable[IPAddress]) -> bool:
        """Whether all of a name's addresses may be connected to; one that may not spoils the others."""
        return self.allow_private or all(map(is_public, addresses))


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(reason, field="webhook.url")
