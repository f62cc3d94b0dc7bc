"""The service must not be open to others unless it asks for keys."""

import socket
from typing import Literal

import pytest

from cli.bind import check_bind, listen, url_of
from cli.errors import BadUsage
from jobs.settings import Settings


def settings(auth: Literal["required", "none"]) -> Settings:
    return Settings(auth=auth)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.8.9.1", "127.8.9.1"),
        ("localhost", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
    ],
)
def test_loopback_is_allowed_without_authentication(host: str, address: str) -> None:
    assert check_bind(host, settings("none")) == address


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "192.168.1.2", "203.0.113.5", "fe80::1", "2001:db8::1"])
def test_other_addresses_are_refused_without_authentication(host: str) -> None:
    with pytest.raises(BadUsage, match="loopback") as refused:
        check_bind(host, settings("none"))
    assert refused.value.field == "--host"


@pytest.mark.parametrize("host", ["", "example.org", "localhost.example.org", "127.0.0.1:8000", "0"])
def test_names_are_refused_whatever_they_stand_for(host: str) -> None:
    for auth in ("none", "required"):
        with pytest.raises(BadUsage, match="neither an IP address nor localhost"):
            check_bind(host, Settings(auth=auth))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::", "203.0.113.5"])
def test_any_address_is_allowed_where_keys_are_asked_for(host: str) -> None:
    assert check_bind(host, settings("required")) == host


def test_port_zero_takes_a_free_port() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        assert port > 0


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadUsage, match=f"Port {port}"):
            listen("127.0.0.1", port)
