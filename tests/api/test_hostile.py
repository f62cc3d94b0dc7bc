"""Whatever is sent, the answer is a refusal that a person can read, and nothing is stored."""

import http.client
import json
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.database import make_engine, upgrade
from jobs.keys import KeyStore
from jobs.scopes import Scope
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from tests.api.conftest import NOWHERE, REQUEST
from tests.api.hostile import Hostile, requests
from tests.api.raw_upload import left_in
from tests.api_server import serving
from tests.jobs.conftest import new_postgres_database

TABLE = list(requests())
MALFORMED = {
    "a line feed in a header": b"GET /jobs HTTP/1.1\r\nHost: a\nb\r\n\r\n",
    "NUL in a header": b"GET /jobs HTTP/1.1\r\nHost: a\r\nX-Request-ID: a\0b\r\n\r\n",
    "a space in a header's name": b"GET /jobs HTTP/1.1\r\nHost : a\r\n\r\n",
    "no HTTP": b"HELLO\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n",
    "two lengths": b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a negative length": b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "a length that is no number": b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 1e3\r\n\r\n",
    "a length that no number holds": b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 1" + b"0" * 30 + b"\r\n\r\n",
    "a vertical tab": b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\x0b\r\n\r\n",
    "a chunk that is none": b"POST /jobs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "an unknown transfer coding": b"POST /jobs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a space in the path": b"GET /jobs /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "an unknown version": b"GET /jobs HTTP/9.9\r\nHost: a\r\n\r\n",
}
"""What is no HTTP: the server refuses it before the application is asked."""


@dataclass(frozen=True)
class Fortress:
    """A service, a key for everything in it, a job that is there, and its data folder."""

    port: int
    key: str
    job_id: str
    store: JobStore
    folder: Path

    def send(self, raw: bytes) -> tuple[http.client.HTTPResponse, str]:
        """The answer to these bytes, and its body."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            with suppress(OSError):  # it was refused before its end
                connection.sendall(raw)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer, answer.read().decode()


@pytest.fixture(scope="module")
def fortress(postgres_server: str, tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Fortress]:
    """With PostgreSQL, which takes fewer texts than SQLite."""
    folder = tmp_path_factory.mktemp("outside") / "inside"
    shutil.copytree(tiny, folder / "models" / "tiny")
    with ExitStack() as stack:
        settings = Settings(
            data_dir=folder,
            database_url=stack.enter_context(new_postgres_database(postgres_server)),
            broker_url="",
            artifacts_url="",
            auth="required",
            rate_limit="",
            hf_endpoint=NOWHERE,
            min_free_disk_bytes=0,
            max_model_bytes=20_000_000,
            max_dataset_bytes=200_000,
        )
        engine = make_engine(settings.database)
        stack.callback(engine.dispose)
        upgrade(engine)
        new, store = KeyStore(engine).create("hostile", list(Scope)), JobStore(engine)
        job_id = store.of(new.record.id).submit(JobSpec(**REQUEST)).id
        store.cancel(job_id)
        url = stack.enter_context(serving(settings))
        yield Fortress(int(url.rpartition(":")[2]), new.key.get_secret_value(), job_id, store, folder)


def test_the_table_is_long() -> None:
    names = [hostile.name for hostile in TABLE]
    assert len(names) == len(set(names)) > 500


@pytest.mark.parametrize("hostile", TABLE, ids=lambda hostile: hostile.name)
def test_refused_in_a_sentence(fortress: Fortress, hostile: Hostile) -> None:
    headers = {
        "Host": "127.0.0.1",
        "Authorization": "Bearer KEY",
        "Content-Length": str(len(hostile.body)),
        "Connection": "close",
        **hostile.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).replace("KEY", fortress.key)
    path = hostile.path.replace("JOB", fortress.job_id)
    answer, text = fortress.send(f"{hostile.method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + hostile.body)
    assert 400 <= answer.status < 500, text[:500]
    assert answer.headers["X-Injected"] is None
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = json.loads(text)
    assert (problem["status"], problem["type"]) == (answer.status, f"urn:flattengpt:problem:{problem['code']}")
    assert 8 < len(problem["detail"]) <= 1000, problem["detail"]
    assert problem["detail"].isprintable(), problem["detail"]
    assert not re.search(r"Traceback|\w(Error|Exception)\b|sqlalchemy|psycopg|/inside", text), text
    assert fortress.key not in text


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_http(fortress: Fortress, raw: bytes) -> None:
    answer, _ = fortress.send(raw)
    assert 400 <= answer.status < 500


def test_nothing_is_stored(fortress: Fortress) -> None:
    """After all of the above, in this order."""
    assert [job.id for job in fortress.store.page().jobs] == [fortress.job_id]
    assert left_in(fortress.folder / "models") == ["tiny"]
    assert left_in(fortress.folder / "datasets") == []
    assert set(left_in(fortress.folder)) <= {"artifacts", "broker", "datasets", "models", "secret.key"}
    assert left_in(fortress.folder.parent) == [fortress.folder.name]
