"""Real servers, and the real demo model."""

from pathlib import Path

import pytest

from cli.demo_model import ensure_demo_model
from jobs.settings import Settings
from tests.servers import postgres_server, postgres_url, redis_server, redis_url

__all__ = ["postgres_server", "postgres_url", "redis_server", "redis_url"]


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's checkpoint folder, fetched once into the project's data folder."""
    return ensure_demo_model(Settings().data_dir.absolute())


@pytest.fixture
def data_dir(tmp_path: Path, demo_model: Path) -> Path:
    """A data folder of the test's own, with the demo model in it."""
    (tmp_path / "models").symlink_to(demo_model.parent)
    return tmp_path
