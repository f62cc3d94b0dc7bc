"""Settings come from the environment under their documented names, and keep secrets to themselves."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from jobs.settings import Settings

SHOW = """
from jobs.settings import Settings
s = Settings()
print(s.model_dump_json(), s.database, s.artifacts, s.embedded, s.models_dir, sep="\\n")
"""


def seen(**env: str) -> tuple[dict[str, Any], list[str]]:
    """The settings of a process with this environment, as they print themselves, and what follows from them."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *rest = done.stdout.splitlines()
    return json.loads(first), rest


def test_embedded_by_default() -> None:
    settings, (database, artifacts, embedded, models) = seen()
    assert (settings["auth"], settings["hf_token"], settings["hf_endpoint"]) == (
        "required",
        None,
        "https://huggingface.co",
    )
    folder = Path.cwd() / ".flattengpt"
    assert database == f"sqlite:///{folder / 'flattengpt.db'}"
    assert artifacts == (folder / "artifacts").as_uri()
    assert (embedded, models) == ("True", ".flattengpt/models")


def test_everything_from_the_environment() -> None:
    settings, (database, artifacts, embedded, models) = seen(
        FLATTENGPT_DATABASE_URL="postgresql+psycopg://db/flat",
        FLATTENGPT_BROKER_URL="redis://broker/0",
        FLATTENGPT_ARTIFACTS_URL="s3://bucket/results",
        FLATTENGPT_DATA_DIR="/srv/flat",
        FLATTENGPT_AUTH="none",
        FLATTENGPT_LEASE_SECONDS="90",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_TOKEN="hf_verysecret",
    )
    assert (settings["auth"], settings["lease_seconds"], settings["data_dir"]) == ("none", 90, "/srv/flat")
    assert settings["hf_endpoint"] == "http://127.0.0.1:9"
    assert "verysecret" not in str(settings)
    assert (database, artifacts, embedded) == ("postgresql+psycopg://db/flat", "s3://bucket/results", "False")
    assert models == "/srv/flat/models"


def test_the_token_does_not_show() -> None:
    settings = Settings(hf_token=SecretStr("hf_verysecret"))
    assert "verysecret" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert settings.hf_token is not None
    assert settings.hf_token.get_secret_value() == "hf_verysecret"


def test_queues_are_a_list_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().queues == ("default",)
    monkeypatch.setenv("FLATTENGPT_QUEUES", "default, gpu-large")
    assert Settings().queues == ("default", "gpu-large")
    for wrong in ("", "a,,b", "No/Name"):
        monkeypatch.setenv("FLATTENGPT_QUEUES", wrong)
        with pytest.raises(ValidationError, match="queues"):
            Settings()


def test_a_lease_outlasts_a_missed_heartbeat() -> None:
    with pytest.raises(ValidationError, match="FLATTENGPT_HEARTBEAT_SECONDS must be at most half"):
        Settings(lease_seconds=5, heartbeat_seconds=3)


def test_every_setting_is_documented_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", page, flags=re.MULTILINE))
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias or f"FLATTENGPT_{name.upper()}"
        assert variable in rows, f"{variable} is not in docs/deploy.md"
        if isinstance(field.default, bool):
            assert rows[str(variable)] == str(field.default).lower()
        elif isinstance(field.default, int | float):
            assert float(rows[str(variable)]) == field.default
