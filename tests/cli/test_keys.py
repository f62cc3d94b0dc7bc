"""`flattengpt keys`, and what the other commands and the client do with a key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner, Result

from cli.client import Client
from cli.errors import ServiceRefused
from cli.main import app
from jobs.settings import ClientSettings, Settings
from tests.api_server import serving
from tests.cli.conftest import TINY_JOB


class Terminal:
    """A shell whose environment leads to one data folder, and maybe to a service."""

    def __init__(self, data_dir: Path, **env: str) -> None:
        self.env: dict[str, str | None] = {"FLATTENGPT_DATA_DIR": str(data_dir), "COLUMNS": "200", **env}

    def run(self, *arguments: str, **env: str) -> Result:
        return CliRunner().invoke(app, arguments, env=self.env | env)

    def new_key(self, name: str, *options: str) -> str:
        made = self.run("keys", "create", "--name", name, *options)
        assert made.exit_code == 0, made.stderr
        return made.stdout.strip()

    def listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("keys", "list", "--json").stdout)["keys"]
        return found


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


@pytest.fixture
def guarded(tmp_path: Path, data_dir: Path) -> Iterator[Terminal]:
    """With a service, without a worker, that asks for keys."""
    (tmp_path / "models").symlink_to(data_dir / "models")
    terminal = Terminal(tmp_path)
    terminal.new_key("first")  # brings the schema up
    with serving(Settings(data_dir=tmp_path, database_url="", broker_url="", artifacts_url="", auth="required")) as url:
        terminal.env["FLATTENGPT_URL"] = url
        yield terminal


def test_a_key_is_all_that_create_prints(terminal: Terminal) -> None:
    made = terminal.run("keys", "create", "--name", "ci", "--expires-days", "3")
    assert (made.exit_code, made.stdout.startswith("fgpt_"), len(made.stdout.split())) == (0, True, 1)
    assert "only this once" in made.stderr
    secret = made.stdout.strip()[22:]
    assert secret not in made.stderr
    shown = terminal.run("keys", "list")
    assert ("ci" in shown.stdout, "active" in shown.stdout, secret in shown.stdout) == (True, True, False)
    [key] = terminal.listed()
    assert made.stdout[5:21] == key["id"]
    assert (key["scopes"], key["last_used_at"], key["expires_at"] is None) == (["jobs:read", "jobs:write"], None, False)


def test_json(terminal: Terminal) -> None:
    made = json.loads(terminal.run("keys", "create", "--name", "ops", "--scopes", "admin", "--json").stdout)
    key = made.pop("key")
    assert key.startswith(f"fgpt_{made['id']}_")
    assert terminal.listed() == [made]
    assert (made["name"], made["scopes"], made["state"], made["expires_at"]) == ("ops", ["admin"], "active", None)
    revoked = json.loads(terminal.run("keys", "revoke", "ops", "--json").stdout)
    assert revoked == made | {"state": "revoked", "revoked_at": revoked["revoked_at"]}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["create"], 2, "--name"),
        (["create", "--name", "a b"], 2, "name: use 1 to 64 letters"),
        (["create", "--name", "x", "--scopes", "jobs:read,root"], 2, "'root' is no scope; known are jobs:read"),
        (["create", "--name", "x", "--expires-days", "0"], 2, "--expires-days"),
        (["create", "--name", "taken"], 1, "revoke it, or choose another name"),
        (["revoke", "nobody"], 1, "There is no key 'nobody' in use"),
        ([], 2, ""),
    ],
)
def test_what_is_refused(terminal: Terminal, arguments: list[str], code: int, message: str) -> None:
    terminal.new_key("taken")
    done = terminal.run("keys", *arguments)
    assert (done.exit_code, message in done.stderr) == (code, True), done.stderr
    assert [key["name"] for key in terminal.listed()] == ["taken"]


def test_a_database_that_cannot_be_used_is_one_readable_line(terminal: Terminal, tmp_path: Path) -> None:
    silent = "postgresql+psycopg://flat:planted@127.0.0.1:9/none"
    unmigrated = {"FLATTENGPT_DATABASE_URL": f"sqlite:///{tmp_path / 'empty.db'}", "FLATTENGPT_BROKER_URL": "redis://x"}
    for env in ({"FLATTENGPT_DATABASE_URL": silent}, unmigrated):
        done = terminal.run("keys", "list", **env)
        assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
        assert "flattengpt migrate" in done.stderr
        assert "planted" not in done.output


def test_the_commands_send_the_key_of_the_environment(guarded: Terminal, tmp_path: Path) -> None:
    guarded.env["FLATTENGPT_API_KEY"] = guarded.new_key("ci") + "\n"  # as read from a file
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(TINY_JOB))
    submitted = guarded.run("submit", str(spec))
    assert submitted.exit_code == 0, submitted.stderr
    job_id = submitted.stdout.strip()
    assert guarded.run("cancel", job_id).exit_code == 0
    assert guarded.run("watch", job_id).stderr.splitlines()[-1] == f"error: Job {job_id} cancelled."
    assert job_id in guarded.run("list").stdout
    guarded.env["FLATTENGPT_API_KEY"] = guarded.new_key("other")
    assert guarded.run("show", job_id).stderr == f"error: There is no job '{job_id}'.\n"
    assert {key["name"]: key["last_used_at"] is None for key in guarded.listed()} == {
        "first": True, "ci": False, "other": False
    }  # fmt: skip


def test_a_missing_and_a_wrong_key_are_one_line_that_says_what_to_set(guarded: Terminal) -> None:
    revoked = guarded.new_key("ci")
    guarded.run("keys", "revoke", "ci")
    for key, words in (("", "asks for an API key"), (revoked, "refuses this API key"), ("planted", "refuses this")):
        done = guarded.run("list", FLATTENGPT_API_KEY=key)
        assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert words in done.stderr
        assert "set FLATTENGPT_API_KEY to one that `flattengpt keys create` made" in done.stderr
        assert not key or key not in done.output


def test_a_key_without_the_scope_is_told_which(guarded: Terminal) -> None:
    reader = guarded.new_key("page", "--scopes", "jobs:read")
    done = guarded.run("cancel", "x", FLATTENGPT_API_KEY=reader)
    assert done.stderr == "error: The API key lacks the scope jobs:write; it has jobs:read.\n"


def test_the_client_shows_its_key_to_nobody(guarded: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    url, key = str(guarded.env["FLATTENGPT_URL"]), guarded.new_key("ci")
    with Client(url, SecretStr(key)) as client:
        assert client.page().jobs == []
        assert key not in f"{client!r} {vars(client)} {client._http.headers!r}"
    monkeypatch.setenv("FLATTENGPT_API_KEY", key)
    assert key not in f"{ClientSettings()!r} {ClientSettings().model_dump()}"
    with Client(url) as client:
        assert client.page().jobs == []
    with Client(url, SecretStr("planted")) as client, pytest.raises(ServiceRefused, match="refuses") as refusal:
        client.page()
    assert (refusal.value.http_status, "planted" in str(refusal.value)) == (401, False)


@pytest.mark.parametrize("key", ["plan ted", "plan\nted", "planté", "plan\x7fted"])
def test_what_fits_in_no_header_is_refused_here(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("FLATTENGPT_API_KEY", key)
    with pytest.raises(ValidationError, match="is no key that") as refusal:
        Client("http://127.0.0.1:9")
    assert "plan" not in str(refusal.value)
    done = terminal.run("list")
    assert (done.exit_code, "FLATTENGPT_API_KEY is no key" in done.stderr, "plan" in done.output) == (2, True, False)
