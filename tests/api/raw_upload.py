"""Uploads as no well-behaved client sends them."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx


def cut_off(live: httpx.Client, path: str, content_type: str, body: bytes, *, announced: int) -> None:
    """Send the body with another Content-Length than its own, and hang up."""
    head = (
        f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {announced}\r\n\r\n"
    )
    with socket.create_connection((live.base_url.host, live.base_url.port)) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(0.2)  # the upload has begun


def stalled(live: httpx.Client, path: str, content_type: str, body: bytes, *, announced: int) -> bytes:
    """Send less than announced, stay, and give the start of the answer."""
    head = (
        f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {announced}\r\n\r\n"
    )
    with socket.create_connection((live.base_url.host, live.base_url.port), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        return connection.recv(1000)


def eventually(holds: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it comes to hold in time."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def left_in(folder: Path) -> list[str]:
    """What is in a folder of uploads, but for its lock."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name != ".lock") if folder.exists() else []
