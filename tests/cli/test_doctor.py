"""`flattengpt doctor` against setups that are right, and wrong in one place each."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner, Result

from cli.main import app
from jobs.database import make_engine, upgrade

NOWHERE = "http://127.0.0.1:9"


def doctor(data_dir: Path, *arguments: str, **env: str) -> Result:
    """The command in a setup of its own; neither a Hub nor a service is there unless it is given."""
    setup = {"FLATTENGPT_DATA_DIR": str(data_dir), "FLATTENGPT_URL": NOWHERE, "HF_ENDPOINT": NOWHERE}
    return CliRunner().invoke(app, ["doctor", *arguments], env=setup | env)


def found(data_dir: Path, code: int, **env: str) -> dict[str, dict[str, Any]]:
    """The findings by what was looked at."""
    done = doctor(data_dir, "--json", **env)
    assert done.exit_code == code, done.output
    report = json.loads(done.stdout)
    assert report["well"] is (code == 0)
    return {finding["what"]: finding for finding in report["findings"]}


def states(findings: dict[str, dict[str, Any]], *but: str) -> set[str]:
    return {finding["state"] for what, finding in findings.items() if what not in but}


def test_a_new_folder_is_well_and_gets_no_database(tmp_path: Path) -> None:
    findings = found(tmp_path, 0)
    assert states(findings, "Hub", "service") == {"ok"}
    assert (findings["Hub"]["state"], findings["service"]["state"]) == ("warning", "warning")
    assert "flattengpt serve" in findings["service"]["remedy"]
    assert "made at the first start" in findings["database"]["found"]
    assert not (tmp_path / "flattengpt.db").exists()


def test_people_read_lines(tmp_path: Path) -> None:
    done = doctor(tmp_path)
    assert done.exit_code == 0
    assert f"warning  service: none at {NOWHERE}\n" in done.stdout
    assert "ok       broker: folders in the data folder\n" in done.stdout


def test_a_running_service_is_found(url: str, data_dir: Path) -> None:
    findings = found(data_dir, 0, FLATTENGPT_URL=url)
    assert states(findings, "Hub") == {"ok"}
    assert "1 in" in findings["models"]["found"]


def test_servers_that_answer(tmp_path: Path, postgres_url: str, redis_url: str) -> None:
    servers = {"FLATTENGPT_DATABASE_URL": postgres_url, "FLATTENGPT_BROKER_URL": redis_url}
    findings = found(tmp_path, 1, **servers)
    assert findings["broker"]["state"] == "ok"
    assert (findings["database"]["state"], findings["database"]["remedy"][:24]) == ("wrong", "Run `flattengpt migrate`")
    upgrade(make_engine(postgres_url))
    assert states(found(tmp_path, 0, **servers), "Hub", "service") == {"ok"}


def test_servers_that_do_not_and_no_password_is_told(tmp_path: Path, postgres_server: str) -> None:
    database = make_url(postgres_server).set(host="127.0.0.1", port=9, password="hunter2")
    servers = {
        "FLATTENGPT_DATABASE_URL": database.render_as_string(hide_password=False),
        "FLATTENGPT_BROKER_URL": "redis://:hunter3@127.0.0.1:9/0",
    }
    findings = found(tmp_path, 1, **servers)
    assert {findings[what]["state"] for what in ("database", "broker")} == {"wrong"}
    assert all(findings[what]["remedy"] for what in ("database", "broker"))
    assert "hunter" not in json.dumps(findings)


def test_a_setting_that_is_none(tmp_path: Path) -> None:
    findings = found(tmp_path, 1, FLATTENGPT_MAX_ATTEMPTS="none")
    assert list(findings) == ["settings"]
    assert "max_attempts" in findings["settings"]["found"]


@pytest.mark.parametrize(
    ("name", "value", "what", "state"),
    [
        ("FLATTENGPT_MIN_FREE_DISK_BYTES", str(2**60), "data folder", "wrong"),
        ("FLATTENGPT_MAX_MEMORY_BYTES", str(2**60), "memory", "warning"),
        ("FLATTENGPT_ARTIFACTS_URL", "no-such-protocol://bucket", "artifacts", "wrong"),
        ("FLATTENGPT_ARTIFACTS_URL", "file:///proc/nowhere", "artifacts", "wrong"),
        ("FLATTENGPT_DATABASE_URL", "oracle://nobody", "database", "wrong"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, value: str, what: str, state: str) -> None:
    finding = found(tmp_path, 1 if state == "wrong" else 0, **{name: value})[what]
    assert finding["state"] == state
    assert finding["remedy"]


def test_a_model_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "models" / "empty").mkdir(parents=True)
    findings = found(tmp_path, 0)
    assert findings["models"]["state"] == "warning"
    assert "local:empty" in findings["models"]["found"]
