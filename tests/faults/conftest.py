"""A running service of each kind, for all tests of a file."""

from collections.abc import Iterator

import pytest

from tests.faults.campaign import undisturbed
from tests.faults.deployment import Deployment, Embedded, Spread


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spread]:
    """Two workers on PostgreSQL and Redis."""
    service = Spread(tmp_path_factory.mktemp("spread"))
    try:
        service.start(workers=2)
        yield service
    finally:
        service.close()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """One process tree on SQLite."""
    service = Embedded(tmp_path_factory.mktemp("embedded"))
    try:
        service.start()
        yield service
    finally:
        service.close()


@pytest.fixture(scope="module")
def spread_reference(spread: Spread) -> dict[str, str]:
    """What an undisturbed job gives."""
    return undisturbed(spread)


@pytest.fixture(scope="module")
def embedded_reference(embedded: Deployment) -> dict[str, str]:
    """What an undisturbed job gives."""
    return undisturbed(embedded)
