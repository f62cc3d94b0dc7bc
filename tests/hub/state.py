"""What the local Hub holds, what it saw, and how it is to fail. Speaks no protocol."""

import re
import secrets
from dataclasses import dataclass, field
from enum import Enum

from tests.hub.repositories import Repository, new_repository
from tests.hub.xet_storage import XetStorage

WRITE_TOKEN = "hf_test_writes_to_acme_only"
XET_TOKEN = "of the storage, not of the Hub"
READ_TOKEN = "hf_test_only_reads"
NAMESPACE = "acme"


@dataclass(frozen=True)
class Seen:
    """A request that reached the server. host: with port, as the client addressed it."""

    method: str
    host: str
    path: str
    authorization: str | None


class Break(Enum):
    """How a connection fails, if not by a status."""

    CUT = "cut after the request was read"
    CUT_UPLOAD = "cut while the request is still sent"
    SILENCE = "nothing is read, nothing is answered"
    UNANSWERED = "it is done as asked, and never answered"
    NONE = "not at all"
    HELD = "it is done and answered, but not before `released`"


@dataclass
class Fault:
    """How the next `times` requests whose `METHOD /path` matches `pattern` fail: by a status, or without an answer."""

    pattern: str
    answer: int | Break
    times: int
    headers: dict[str, str]
    message: str


@dataclass
class Hub:
    """A running server: what it holds, what it saw, how it is to fail.

    renamed: new by old repository id. uploaded: the size of each body that the storage took, in order. released: what
    is held goes on. closing: all silences end.
    """

    port: int = 0
    repositories: dict[str, Repository] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)
    xet: XetStorage = field(default_factory=XetStorage)
    xet_name: str = field(default_factory=lambda: secrets.token_hex(8))
    seen: list[Seen] = field(default_factory=list)
    uploaded: list[int] = field(default_factory=list)
    released: bool = False
    closing: bool = False
    faults: list[Fault] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage_url(self) -> str:
        return f"http://localhost:{self.port}/storage"

    @property
    def xet_url(self) -> str:
        """Of this hub alone: the client notes for each address, on the disk, which chunks are there already."""
        return f"{self.storage_url}/xet/{self.xet_name}"

    def fail(self, pattern: str, answer: int | Break, *, times: int = 1_000, message: str = "", **headers: str) -> None:
        """Make requests fail; header names are given with `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(pattern, answer, times, named, message))

    def forget(self) -> None:
        """Hold nothing, have seen nothing, fail nowhere."""
        for kept in (self.repositories, self.storage, self.seen, self.uploaded, self.faults):
            kept.clear()

    def add(
        self, repo_id: str, files: dict[str, bytes], *, private: bool = False, title: str = "by hand"
    ) -> Repository:
        """Put a repository there."""
        made = self.repositories[repo_id] = new_repository(repo_id, private=private)
        made.add(title, made.head.files | files)
        return made

    def requests(self, pattern: str) -> list[Seen]:
        """The requests seen so far whose `METHOD /path` matches."""
        return [seen for seen in self.seen if re.search(pattern, f"{seen.method} {seen.path}")]

    def take_fault(self, request: str) -> Fault | None:
        """The fault that this request runs into, which is then used up once."""
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, request):
                fault.times -= 1
                return fault
        return None
