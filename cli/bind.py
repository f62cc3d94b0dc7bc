"""Which address the service may listen on: any with API keys, only this machine's own without."""

import ipaddress
import socket

from cli.errors import BadUsage
from jobs.settings import Settings


def check_bind(host: str, settings: Settings) -> str:
    """The address to listen on for `host`.

    Raises:
        BadUsage: it is no address, or the service would be open to others without asking for API keys.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
    except ValueError:
        raise BadUsage(f"{host!r} is neither an IP address nor localhost.", field="--host") from None
    if settings.auth == "none" and not address.is_loopback:
        raise BadUsage(
            f"With FLATTENGPT_AUTH=none anyone who reaches {host} could use the service: bind to a loopback address "
            "such as 127.0.0.1, or set FLATTENGPT_AUTH=required and make API keys with `flattengpt keys create`.",
            field="--host",
        )
    return str(address)


def listen(address: str, port: int) -> socket.socket:
    """A listening socket on `address`; port 0 takes a free one.

    Raises:
        BadUsage: the port is taken or not allowed.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise BadUsage(f"Port {port} of {address} cannot be used: {error.strerror}.", field="--port") from None
    listener.set_inheritable(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """The address of a listening socket as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
