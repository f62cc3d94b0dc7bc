"""A real service on a free port, with a tiny model to compress."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.client import Client
from cli.demo_service import embedded_service
from tests.tiny_models import tiny_checkpoint

TINY_JOB: dict[str, Any] = {
    "model": "local:tiny",
    "layers": 4,
    "calibration": {"dataset": "python-docs", "samples": 8, "sequence_length": 64},
    "evaluation": {"perplexity": ["python-docs"], "sequence_length": 64, "windows": 4, "benchmark": False},
}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose model folder holds `local:tiny`."""
    folder = tmp_path_factory.mktemp("data")
    tiny_checkpoint(folder / "models" / "tiny")
    return folder


@pytest.fixture(scope="session")
def url(data_dir: Path) -> Iterator[str]:
    """The address of an embedded service."""
    with embedded_service(data_dir, data_dir / "logs" / "service.log") as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as opened:
        yield opened
