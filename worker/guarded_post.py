"""One HTTP POST to an address that a client of the service chose, and to none that it must not reach.

A name is resolved once, all its addresses are checked, and the connection goes to one of those that were checked:
whatever the name resolves to a moment later (DNS rebinding) has no say. TLS is for the name, as it is in the URL. No
redirects are followed, no proxies of the environment are used, and of the answer only the status and the time to wait
are read. The whole has one deadline, so that a receiver cannot hold the sender by answering byte after byte.
"""

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore
import httpx

from flattengpt_core.errors import InvalidRequest
from jobs.webhook_target import IPAddress, TargetRules, parse

TIMEOUT_SECONDS = 10.0

Resolver = Callable[[str, int], Sequence[str]]
"""All addresses of a name; raises OSError."""


@dataclass(frozen=True)
class Answer:
    """What a receiver said. retry_after: the seconds that it asked to be left alone for, or 0."""

    status: int
    retry_after: float


class NotSent(Exception):
    """No answer came; `reason` says why in words of ours, without what a name resolves to."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def resolve(host: str, port: int) -> Sequence[str]:
    """What the system says of a name. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedPost:
    """Posts within the rules.

    Args:
        timeout_seconds: of one POST, after the name is resolved.
        tls: whom to believe; as the system says, or SSL_CERT_FILE, if None.
    """

    def __init__(
        self,
        rules: TargetRules,
        *,
        resolver: Resolver = resolve,
        timeout_seconds: float = TIMEOUT_SECONDS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._rules, self._resolver, self._timeout = rules, resolver, timeout_seconds
        self._tls = tls or httpx.create_ssl_context()

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """The receiver's answer, whatever its status. Raises NotSent."""
        try:
            target = parse(url)
            self._rules.check(target)
        except (ValueError, InvalidRequest):
            raise NotSent("the URL is not allowed") from None
        addresses = [target.address] if target.address else self._addresses(target.host, target.port)
        if not self._rules.allow(addresses):
            raise NotSent("the host is not on the public internet")
        host = f"[{target.host}]" if ":" in target.host else target.host
        where = httpcore.URL(
            scheme=b"https" if target.secure else b"http",
            host=host.encode(),
            port=target.port,
            target=target.path.encode(),
        )
        network = _Pinned(addresses, time.monotonic() + self._timeout)
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout)
        try:
            with (
                httpcore.ConnectionPool(ssl_context=self._tls, network_backend=network) as connections,
                connections.stream(
                    "POST", where, headers=list(headers.items()), content=body, extensions={"timeout": timeouts}
                ) as response,
            ):
                return Answer(response.status, seconds_to_wait(response.headers))
        except Exception as error:  # httpcore's own, and what TLS and sockets add to them
            raise NotSent(_reason(error)) from None

    def _addresses(self, host: str, port: int) -> Sequence[IPAddress]:
        try:
            found = [ipaddress.ip_address(address) for address in self._resolver(host, port)]
        except (OSError, ValueError):
            found = []
        if not found:
            raise NotSent("the host's name does not resolve")
        return found


class _Pinned(httpcore.NetworkBackend):
    """Connects to these addresses, whatever the name, until the deadline."""

    def __init__(self, addresses: Sequence[IPAddress], deadline: float) -> None:
        self._addresses, self._deadline = addresses, deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first address that takes one; each has its share of the time that is left."""
        for number, address in enumerate(self._addresses):
            share = _left(self._deadline) / (len(self._addresses) - number)
            try:
                stream = self._sockets.connect_tcp(str(address), port, share, local_address, socket_options or ())
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(self._addresses) - 1:
                    raise
            else:
                return _Timed(stream, self._deadline)
        raise httpcore.ConnectError("no address")


class _Timed(httpcore.NetworkStream):
    """A stream that ends at the deadline, however slowly it goes on."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    """Seconds until the deadline. Raises ReadTimeout once it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise httpcore.ReadTimeout("the deadline has passed")
    return seconds


def _reason(error: Exception) -> str:
    if isinstance(error, httpcore.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpcore.ConnectError):
        tls = isinstance(error.__context__, ssl.SSLError) or "certificate" in str(error).lower()
        return "TLS failed: is the certificate valid for the name?" if tls else "the host takes no connection"
    return "the connection broke, or the answer was no HTTP"


def seconds_to_wait(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """What Retry-After asks for, or 0. A date is measured by the receiver's own clock, as its answer's Date says it."""
    found = {name.lower(): value.decode("latin-1").strip() for name, value in headers}
    asked = found.get(b"retry-after", "")
    if re.fullmatch(r"\d{1,9}", asked, re.ASCII):
        return float(asked)
    try:
        until, now = parsedate_to_datetime(asked), parsedate_to_datetime(found.get(b"date", ""))
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError):
        return 0.0
