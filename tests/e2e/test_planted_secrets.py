"""Secrets go where they are used, and nowhere else: a search of everything a service leaves behind.

As it is deployed, on servers that ask for passwords. Jobs succeed, are refused, and fail while others quote a secret.
"""

import base64
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from cryptography.fernet import Fernet
from sqlalchemy import MetaData, create_engine, make_url, select, text

from tests.hub.state import WRITE_TOKEN, Hub
from tests.hub_server import running_hub
from tests.processes import wait_until
from tests.receiver import receiving
from tests.tiny_models import tiny_checkpoint

FLATTENGPT = [sys.executable, "-m", "cli.main"]
REQUEST: dict[str, Any] = {
    "model": "acme/tiny",
    "layers": 4,
    "calibration": {"dataset": "python-docs", "samples": 8, "sequence_length": 64},
    "evaluation": {"perplexity": ["python-docs"], "sequence_length": 64, "windows": 4, "benchmark": False},
    "publish": {"repo_id": "acme/tiny-flat4"},
}


@dataclass
class Evidence:
    """planted: secrets by what they are. found: all that was written or said, by where."""

    planted: dict[str, str] = field(default_factory=dict)
    found: dict[str, bytes] = field(default_factory=dict)

    def add(self, where: str, what: str | bytes) -> None:
        self.found[where] = self.found.get(where, b"") + (what.encode() if isinstance(what, str) else what)

    def leaks(self) -> list[str]:
        """Which secret is where, also as it looks in URLs and with its base64's padding gone."""
        return [
            f"{name} in {where}"
            for name, secret in self.planted.items()
            for where, what in self.found.items()
            if any(shape.encode() in what for shape in {secret, secret.rstrip("="), secret.replace("=", "%3D")})
        ]


@pytest.fixture
def evidence() -> Evidence:
    return Evidence({"Hub token": WRITE_TOKEN})


@pytest.fixture
def database(postgres_url: str, postgres_server: str, evidence: Evidence) -> Iterator[str]:
    """The URL of a database of a user with a password."""
    role, password = f"flattengpt_{secrets.token_hex(4)}", f"planted-{secrets.token_hex(12)}"
    evidence.planted["database password"] = password
    name = make_url(postgres_url).database
    with (admin := create_engine(postgres_server, isolation_level="AUTOCOMMIT")).connect() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'"))
        connection.execute(text(f"ALTER DATABASE {name} OWNER TO {role}"))
    with (own := create_engine(postgres_url, isolation_level="AUTOCOMMIT")).connect() as connection:
        connection.execute(text(f"ALTER SCHEMA public OWNER TO {role}"))
    yield make_url(postgres_url).set(username=role, password=password).render_as_string(hide_password=False)
    with own.connect() as connection:
        connection.execute(text(f"REASSIGN OWNED BY {role} TO CURRENT_USER"))
        connection.execute(text(f"DROP OWNED BY {role}"))
    own.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP ROLE {role}"))
    admin.dispose()


@pytest.fixture
def broker(redis_url: str, evidence: Evidence) -> Iterator[str]:
    """The URL of a Redis database for a user with a password."""
    user, password = f"flattengpt-{secrets.token_hex(4)}", f"planted-{secrets.token_hex(12)}"
    evidence.planted["broker password"] = password
    with redis.Redis.from_url(redis_url) as admin:
        admin.execute_command("ACL", "SETUSER", user, "on", f">{password}", "~*", "&*", "+@all")
        yield redis_url.replace("://", f"://{user}:{password}@")
        admin.execute_command("ACL", "DELUSER", user)


@pytest.fixture
def environment(database: str, broker: str, tmp_path: Path, evidence: Evidence) -> dict[str, str]:
    """What every process of the service is given, but for the Hub."""
    keys = [Fernet.generate_key().decode() for _ in range(2)]
    evidence.planted |= {"first sealing key": keys[0], "second sealing key": keys[1]}
    return {
        "FLATTENGPT_DATABASE_URL": database,
        "FLATTENGPT_BROKER_URL": broker,
        "FLATTENGPT_DATA_DIR": str(tmp_path / "service"),
        "FLATTENGPT_SECRET_KEYS": ",".join(keys),
        "FLATTENGPT_SWEEP_SECONDS": "0.5",
        "FLATTENGPT_MIN_FREE_DISK_BYTES": "0",
        "FLATTENGPT_WEBHOOK_ALLOW_PRIVATE": "true",
        "FLATTENGPT_WEBHOOK_ALLOW_HTTP": "true",
        "FLATTENGPT_LOG_LEVEL": "debug",
        "HF_HUB_DISABLE_XET": "1",
    }


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub that holds two private models."""
    files = {file.name: file.read_bytes() for file in tiny_checkpoint(tmp_path / "source").iterdir()}
    with running_hub() as hub:
        for name in ("acme/tiny", "acme/second"):
            hub.add(name, files, private=True)
        yield hub


@pytest.mark.slow
def test_no_secret_is_left_anywhere(
    environment: dict[str, str], hub: Hub, tmp_path: Path, evidence: Evidence, database: str, broker: str
) -> None:
    environment = environment | {"HF_ENDPOINT": hub.endpoint}
    of_workers = environment | {"HF_TOKEN": WRITE_TOKEN}

    def command(*arguments: str, **changed: str) -> str:
        done = subprocess.run(
            [*FLATTENGPT, *arguments], env=os.environ | of_workers | changed, capture_output=True, text=True
        )
        evidence.add(f"what {arguments[0]} says", done.stderr)
        if arguments[0] != "keys":
            evidence.add(f"what {arguments[0]} says", done.stdout)
        return done.stdout

    command("migrate")
    key = command("keys", "create", "--name", "ci", "--scopes", "admin").strip()
    evidence.planted["API key"] = key.rpartition("_")[2]  # what comes before may be seen
    command("doctor")
    nowhere = make_url(database).set(port=9).render_as_string(hide_password=False)
    command("doctor", FLATTENGPT_DATABASE_URL=nowhere, FLATTENGPT_BROKER_URL=re.sub(r":\d+/", ":9/", broker))
    command("migrate", FLATTENGPT_DATABASE_URL=nowhere)

    with ExitStack() as stack:
        logs = tmp_path / "service" / "printed"
        hook = stack.enter_context(receiving())
        serve = stack.enter_context(logged("serve", ["--port", "0"], of_workers, logs))
        assert serve.stdout is not None
        client = stack.enter_context(overheard(serve.stdout.readline().strip(), key, evidence))
        signing = client.get("/webhooks/secret").json()["secret"]
        assert signing.encode() in evidence.found.pop("GET /webhooks/secret")  # the one place for it
        evidence.planted["webhook secret"] = signing.removeprefix("whsec_")

        request = REQUEST | {"webhook": {"url": hook.url, "events": ["started", "succeeded", "failed"]}}
        good = submitted(client, request)
        hub.fail("/api/models/acme/other/", 403, message=f"Bearer {WRITE_TOKEN} may not")
        unpublished = submitted(client, request | {"publish": {"repo_id": "acme/other"}})
        hub.fail("(GET|HEAD) /acme/second/resolve/.*safetensors", 403, message=f"Bearer {WRITE_TOKEN} may not")
        unread = submitted(client, request | {"model": "acme/second"})
        client.post("/jobs", json=request | {"webhook": {"url": "https://user:planted@example.org"}})
        client.post("/jobs", json=request | {"model": "local:missing"})
        client.get("/jobs", headers={"Authorization": f"Bearer {key}x"})
        dump_broker(broker, evidence)  # the messages are still there: nobody works yet

        stack.enter_context(logged("sweep", [], environment, logs))
        stack.enter_context(logged("worker", [], of_workers, logs))
        assert ended(client, good) == "succeeded"
        assert [ended(client, job_id) for job_id in (unpublished, unread)] == ["failed", "failed"]
        for job_id in (good, unpublished, unread):
            for path in ("", "/events", "/artifacts", "/webhooks"):
                client.get(f"/jobs/{job_id}{path}")
        wait_until(lambda: len(hook.seen) >= 6, what="the last message to the webhook")
        dump_broker(broker, evidence)

    dump_database(database, evidence)
    evidence.add("webhooks", b"".join(seen.body + repr(seen.headers).encode() for seen in hook.seen))
    published = hub.repositories["acme/tiny-flat4"].head
    evidence.add("the Hub", published.title.encode() + b"".join(published.files.values()))
    for file in (tmp_path / "service").rglob("*"):
        if file.is_file():
            evidence.add(f"{file.relative_to(tmp_path)}", file.read_bytes())

    for where in ("broker", "table job_event", "webhooks", "the Hub", "service/printed/serve.log"):
        assert good.encode() in evidence.found[where], f"{where} was not searched"
    assert {name for name, secret in evidence.planted.items() if len(secret) > 16} == set(evidence.planted)
    assert evidence.leaks() == []


@contextmanager
def logged(
    command: str, options: Sequence[str], environment: Mapping[str, str], logs: Path
) -> Iterator[subprocess.Popen[str]]:
    """A part of the service, with what it prints in a file."""
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{command}.log").open("wb") as log:
        process = subprocess.Popen(
            [*FLATTENGPT, command, *options],
            env=os.environ | environment,
            stdout=subprocess.PIPE if command == "serve" else log,
            stderr=log,
            text=True,
        )
    try:
        yield process
        process.terminate()
        assert process.wait(60) == 0, command
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def overheard(url: str, key: str, evidence: Evidence) -> Iterator[httpx.Client]:
    """A client whose answers are written down."""

    def note(answer: httpx.Response) -> None:
        said = repr(answer.headers.multi_items()).encode() + answer.read()
        evidence.add(f"{answer.request.method} {answer.request.url.path}", said)

    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, event_hooks={"response": [note]}, timeout=120) as client:
        yield client


def submitted(client: httpx.Client, request: dict[str, Any]) -> str:
    answer = client.post("/jobs", json=request)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ended(client: httpx.Client, job_id: str) -> str:
    """The job's state at its end."""
    deadline = time.monotonic() + 300
    while True:
        job = client.get(f"/jobs/{job_id}", headers={"Prefer": "wait=20"}).json()
        if job["finished_at"]:
            return str(job["status"])
        assert time.monotonic() < deadline, job


def dump_broker(url: str, evidence: Evidence) -> None:
    """All keys and values of the Redis database, each as the server itself would move it elsewhere."""
    with redis.Redis.from_url(url) as broker:
        for key in broker.scan_iter():
            kind = broker.type(key)
            evidence.add("broker", key)
            if kind == b"list":
                evidence.add("broker", b"".join(base64_opened(entry) for entry in broker.lrange(key, 0, -1)))
            else:
                evidence.add("broker", broker.dump(key) or b"")


def base64_opened(message: bytes) -> bytes:
    """A message of Celery's, and what it holds in base64."""
    return message + base64.b64decode(json.loads(message)["body"])


def dump_database(url: str, evidence: Evidence) -> None:
    """Every row of every table."""
    engine, tables = create_engine(url), MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        for table in tables.sorted_tables:
            evidence.add(f"table {table.name}", repr(connection.execute(select(table)).all()))
    engine.dispose()
