"""A running service of each kind, for all tests of a file."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.faults.campaign import undisturbed
from tests.faults.deployment import Deployment, Embedded, Spread
from tests.hub_server import running_hub


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spread]:
    """Two workers on PostgreSQL and Redis."""
    with running_hub() as hub, closing(Spread(tmp_path_factory.mktemp("spread"), hub)) as service:
        service.start(workers=2)
        yield service


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """One process tree on SQLite."""
    with closing(Embedded(tmp_path_factory.mktemp("embedded"))) as service:
        service.start()
        yield service


@pytest.fixture(scope="module")
def spread_reference(spread: Spread) -> dict[str, str]:
    """What an undisturbed job gives."""
    return undisturbed(spread)


@pytest.fixture(scope="module")
def embedded_reference(embedded: Deployment) -> dict[str, str]:
    """What an undisturbed job gives."""
    return undisturbed(embedded)
