"""A short campaign: real processes on real servers, broken in mid-job. `make faults` runs the long one."""

import pytest

from tests.faults import scenarios
from tests.faults.campaign import Scenario, run
from tests.faults.deployment import Embedded, Spread
from tests.faults.scenarios import Extent

pytestmark = pytest.mark.slow

SHORT = Extent(kills=1, outage_seconds=3, cuts=10)
SEED = 0


@pytest.mark.parametrize(
    "scenario",
    [
        scenarios.worker_killed_at_random,
        scenarios.worker_stopped_past_its_lease,
        scenarios.api_killed_before_it_announces,
        scenarios.broker_down,
        scenarios.database_restarted,
    ],
)
def test_on_postgresql_and_redis(scenario: Scenario, spread: Spread, spread_reference: dict[str, str]) -> None:
    assert run(scenario, spread, SHORT, SEED, spread_reference).not_run is None


@pytest.mark.parametrize("scenario", [scenarios.service_killed_on_submit, scenarios.database_locked])
def test_on_sqlite_and_the_embedded_queue(
    scenario: Scenario, embedded: Embedded, embedded_reference: dict[str, str]
) -> None:
    assert run(scenario, embedded, SHORT, SEED, embedded_reference).not_run is None
