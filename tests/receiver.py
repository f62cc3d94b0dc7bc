"""A receiver of webhooks on this machine: writes down what it is sent, and answers as it is told."""

import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook


@dataclass(frozen=True)
class Seen:
    """A request. headers: by lower-case names."""

    path: str
    headers: dict[str, str]
    body: bytes

    def verified(self, secret: str) -> Any:
        """The message, if one of its signatures is by this secret; raises WebhookVerificationError."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass(frozen=True)
class Reply:
    """How to answer. seconds: how long to wait before; drip: send a header's byte each so many seconds, for good."""

    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    drip: float = 0.0


class Receiver:
    """replies: for one request each, in order; after the last one come 204s."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port, self.url = port, f"{scheme}://127.0.0.1:{port}/hook?token=in-the-query"
        self.seen: list[Seen] = []
        self.replies: list[Reply] = []
        self.default = Reply()
        self._lock = threading.Lock()

    def take(self, seen: Seen) -> Reply:
        """Note a request; the answer to it."""
        with self._lock:
            self.seen.append(seen)
            return self.replies.pop(0) if self.replies else self.default


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = receiver.take(Seen(self.path, headers, body))
            time.sleep(reply.seconds)
            try:
                if reply.drip:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                    while True:
                        self.wfile.write(b"x")
                        time.sleep(reply.drip)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
            except OSError:
                pass  # the sender has gone

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver = Receiver(server.server_address[1], "https" if tls else "http")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
