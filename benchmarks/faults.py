"""What happens to jobs while everything around them breaks: `make faults` runs the long campaign, for about an hour.

Each scenario of `tests/faults` runs on processes and servers of its own, followed by two loads: small compressions with
a worker killed every 20 seconds, and many jobs whose process only sleeps and writes, for the queue's own sake. Every
outcome is written to `faults.json` as soon as it is known; `--only` runs some anew and keeps the others.
"""

import argparse
import dataclasses
import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib import pyplot

from flattengpt_core.manifest import write_json
from tests.faults.campaign import EMBEDDED, SPREAD, Outcome, Scenario, run, undisturbed
from tests.faults.deployment import REQUEST, STAND_IN, Deployment, Embedded, Spread
from tests.faults.invariants import check
from tests.faults.load import load
from tests.faults.scenarios import Extent
from tests.hub_server import running_hub

HERE = Path(__file__).parent
LONG = Extent(kills=20, outage_seconds=60, cuts=20)
WORKERS = 2
KILL_SECONDS = 20.0
SMALL: dict[str, Any] = {
    **REQUEST,
    "layers": 3,
    "calibration": {"dataset": "python-docs", "samples": 4, "sequence_length": 64},
    "recovery": {"method": "none"},
    "evaluation": {"perplexity": ["python-docs"], "sequence_length": 64, "windows": 2, "benchmark": False},
}
"""The load's compression: of a random model of four layers."""
LOADS: Mapping[str, dict[str, Any]] = {
    "compressions": {"jobs": 300, "clients": 50, "kill_seconds": KILL_SECONDS},
    "stand-in": {"jobs": 2000, "clients": 50, "kill_seconds": None},
}


def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="flattengpt-faults-", ignore_cleanup_errors=True)


@contextmanager
def spread(**how: Any) -> Iterator[Spread]:
    """A service on PostgreSQL and Redis, and a local Hub."""
    with _folder() as folder, running_hub() as hub, closing(Spread(Path(folder), hub, **how)) as service:
        service.start(workers=WORKERS)
        yield service


@contextmanager
def embedded() -> Iterator[Embedded]:
    """A service on SQLite with the embedded queue."""
    with _folder() as folder, closing(Embedded(Path(folder))) as service:
        service.start()
        yield service


def scenario(what: Scenario, start: Callable[[], Any], seed: int) -> Outcome:
    """The outcome of one scenario on a service of its own; what did not hold is part of it."""
    try:
        with start() as service:
            return run(what, service, LONG, seed, undisturbed(service))
    except AssertionError as error:
        return Outcome(what.__name__, (what.__doc__ or "").splitlines()[0], _kind(start), 0.0, failed=str(error))


def loaded(name: str, seed: int) -> dict[str, Any]:
    """What a load came to, and what its jobs went through."""
    stand_in = name == "stand-in"
    with spread(**({"worker_command": STAND_IN} if stand_in else {}), layers=4) as service:
        reference = None if stand_in else undisturbed(service, SMALL)
        rng = random.Random(seed)  # nosec B311  # a run is repeated by its seed
        ids, found = load(service, SMALL, **LOADS[name], rng=rng)
        tally = check(service.store, service.artifacts, ids, reference=reference)
    process = "a stand-in that only sleeps and writes" if stand_in else "a compression of a random model of 4 layers"
    return {"job": process, **dataclasses.asdict(found), **dataclasses.asdict(tally)}


def draw(found: Mapping[str, Any], file: Path) -> None:
    """Attempts by how they ended, for each scenario."""
    outcomes = [outcome for outcome in found["scenarios"] if not (outcome["not_run"] or outcome["failed"])]
    outcomes += [
        {"scenario": f"load: {name}", "deployment": Spread.kind} | load for name, load in found["loads"].items()
    ]
    names = [f"{outcome['scenario'].replace('_', ' ')} ({outcome['deployment'].split()[0]})" for outcome in outcomes]
    figure, axes = pyplot.subplots(figsize=(9, 0.3 * len(names) + 1), layout="constrained")
    left = [0.0] * len(names)
    for how, colour in (
        ("jobs", "tab:green"),
        ("handed_back", "tab:blue"),
        ("died", "tab:red"),
        ("lease_expired", "tab:orange"),
    ):
        widths = [outcome[how] / outcome["jobs"] for outcome in outcomes]
        axes.barh(names, widths, left=left, color=colour, label="succeeded" if how == "jobs" else how.replace("_", " "))
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("attempts a job, by how they ended")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Run what is asked for, and say what did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which things break")
    parser.add_argument("--out", type=Path, default=HERE / "faults.json")
    parser.add_argument("--only", nargs="*", help="names of scenarios and loads; all if not given")
    arguments = parser.parse_args()
    known = json.loads(arguments.out.read_text()) if arguments.only and arguments.out.exists() else {}
    outcomes = {(entry["scenario"], entry["deployment"]): entry for entry in known.get("scenarios", [])}
    loads: dict[str, Any] = known.get("loads", {})

    def keep() -> None:
        found = {
            "seed": arguments.seed,
            "extent": dataclasses.asdict(LONG),
            "workers": WORKERS,
            "scenarios": list(outcomes.values()),
            "loads": loads,
        }
        write_json(arguments.out, found)
        draw(found, arguments.out.with_suffix(".svg"))

    for start, scenarios in ((spread, SPREAD), (embedded, EMBEDDED)):
        for what in scenarios:
            if arguments.only is None or what.__name__ in arguments.only:
                outcome = scenario(what, start, arguments.seed)
                outcomes[outcome.scenario, outcome.deployment] = outcome.as_dict()
                print(outcome, flush=True)  # noqa: T201
                keep()
    for name in LOADS:
        if arguments.only is None or name in arguments.only:
            loads[name] = loaded(name, arguments.seed)
            print(loads[name], flush=True)  # noqa: T201
            keep()
    failed = [entry["scenario"] for entry in outcomes.values() if entry["failed"]]
    raise SystemExit(f"did not hold: {', '.join(failed)}" if failed else 0)


def _kind(start: Callable[[], Any]) -> str:
    service: type[Deployment] = Spread if start is spread else Embedded
    return service.kind


if __name__ == "__main__":
    main()
