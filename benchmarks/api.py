"""How fast the API is with 100,000 jobs and 1,000,000 events in PostgreSQL: `make api`, about 15 minutes on two cores.

Each figure is a ratio of two things that were measured in turns, on the same servers. The load comes from `wrk`
(Debian: `apt-get install wrk`); database and broker are those that the tests start.

Writes `api.json` and `api.svg` beside this file, and fails if a claim does not hold.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from matplotlib import pyplot
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from benchmarks.api_server import PLAIN
from benchmarks.claims import Claim
from cli.client import Client
from cli.demo import REQUEST as DEMO
from cli.demo_model import ensure_demo_model
from cli.demo_service import embedded_service
from flattengpt_core.manifest import write_json
from jobs.database import make_engine, upgrade
from jobs.keys import KeyStore
from jobs.scopes import Scope
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.states import JobStatus
from jobs.tables import Job
from tests.faults.servers import Broker, Database
from tests.tiny_models import tiny_checkpoint

HERE = Path(__file__).parent
JOBS, EVENTS = 100_000, 1_000_000
OTHERS = 9
"""Keys that own two fifths of the jobs; the one that asks owns the rest."""
PAGE_JOBS, DEEP_PAGE = 50, 1000
READERS, WRITERS = 16, 50
ROUNDS, ROUND_SECONDS = 9, 4
JOB_ROUNDS = 3
FIGURES = ("start", "show", "pages", "submit", "job")
SPEC: dict[str, Any] = {
    "model": "local:tiny",
    "layers": 4,
    "calibration": {"dataset": "python-docs", "samples": 8, "sequence_length": 64},
    "evaluation": {"perplexity": ["python-docs"], "sequence_length": 64, "windows": 4, "benchmark": False},
}
RESULT: dict[str, Any] = {
    "model": {
        "layers": 24,
        "parameters": 113_300_000,
        "perplexity": {"wikitext2": 41.5},
        "accuracy": {"piqa": 0.6, "mean": 0.6},
        "tokens_per_second": 30.0,
        "latency_ms": 400.0,
    },
    "artifacts": [
        {"path": path, "size": 1000, "sha256": "0" * 64}
        for path in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "flattengpt.json", "depth.png")
    ],
}


@dataclass(frozen=True)
class Load:
    """What a round of requests came to."""

    per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Service:
    """The service that is asked. key: that asks. folder: for the files of this benchmark."""

    url: str
    key: str
    folder: Path
    wrk: str

    def load(self, paths: Sequence[str], *, clients: int, seconds: int, body: Any = None) -> Load:
        """Ask for the paths in turn, from so many clients, each of which waits for its answer.

        Raises:
            RuntimeError: a request failed.
        """
        (self.folder / "paths").write_text("\n".join(paths), encoding="utf-8")
        environment = {"PATHS": str(self.folder / "paths"), "KEY": self.key}
        if body is not None:
            environment["BODY"] = json.dumps(body)
        command = [self.wrk, "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s"]
        done = subprocess.run(
            [*command, "-s", str(HERE / "requests.lua"), self.url],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        if found["failed"] or not found["requests"]:
            raise RuntimeError(f"{found['failed']} of {found['requests']} requests for {paths[0]} failed")
        return Load(found["requests"] / found["seconds"], found["p50_ms"], found["p99_ms"])


def fill(engine: Engine, owner: str) -> None:
    """Jobs of which most have ended, and their events; `owner` has three of five of them."""
    request = JobSpec.model_validate(SPEC).as_request()
    metrics = {
        "dense": RESULT["model"],
        "compressed": RESULT["model"],
        "compress_seconds": 60.0,
        "peak_memory_bytes": 2**30,
        "groups": [[layer] for layer in range(24)],
    }
    done = {"metrics": metrics, "artifacts": RESULT["artifacts"], "progress": 1.0, "attempt": 1}
    first = Job(id="0" * 26, model="local:tiny", method="flattengpt", request=request, labels={"team": "search"},
                status=JobStatus.SUCCEEDED, owner=owner, **done)  # fmt: skip
    with Session(engine) as session, session.begin():
        session.add(first)
    columns = [column.name for column in Job.__table__.columns]
    others = {
        "id": "'01' || lpad(n::text, 24, '0')",
        "owner": f"CASE WHEN n % 5 < 3 THEN owner ELSE 'other' || (n % {OTHERS})::text END",
        "created_at": "clock_timestamp() - interval '1 second' * (:jobs - n)",
        "finished_at": "clock_timestamp() - interval '1 second' * (:jobs - n)",
        "last_event": ":events",
        "status": "CASE WHEN n % 100 = 0 THEN 'failed' WHEN n % 100 = 1 THEN 'cancelled' ELSE status END",
    }
    selected = ", ".join(f"{others.get(column, column)}" for column in columns)
    counts = {"jobs": JOBS, "events": EVENTS // JOBS}
    with engine.begin() as connection:
        connection.execute(
            text(
                f"INSERT INTO job ({', '.join(columns)}) "  # nosec B608  # of column names alone
                f"SELECT {selected} FROM job, generate_series(1, :jobs) AS n"
            ),
            counts,
        )
        connection.execute(text("DELETE FROM job WHERE id = repeat('0', 26)"))
        connection.execute(
            text(
                "INSERT INTO job_event (job_id, seq, attempt, type, data, created_at) "
                "SELECT id, seq, 1, 'progress', jsonb_build_object('progress', 0.1 * seq), created_at "
                "FROM job, generate_series(1, :events) AS seq"
            ),
            {"events": counts["events"]},
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


@contextmanager
def serving(environment: Mapping[str, str]) -> Iterator[str]:
    """The URL of the API and the plain application, in one process."""
    command = [sys.executable, "-m", "benchmarks.api_server"]
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def in_turns(service: Service, one: Sequence[str], other: Sequence[str], *, clients: int) -> dict[str, Any]:
    """Requests/s for two lists of paths, measured in turns; the ratio of the second to the first is the median's."""
    both = {"one": one, "other": other}
    for paths in both.values():
        service.load(paths, clients=clients, seconds=2)
    rounds = []
    for number in range(ROUNDS):
        order = sorted(both, reverse=number % 2 == 1)
        found = {name: service.load(both[name], clients=clients, seconds=ROUND_SECONDS) for name in order}
        rounds.append([found[name].per_second for name in both])
    ratios = [second / first for first, second in rounds]
    return {"clients": clients, "per_second": rounds, "ratio": statistics.median(ratios)}


def shown(service: Service, ids: Sequence[str]) -> dict[str, Any]:
    """`GET /jobs/{id}` against the plain route."""
    return in_turns(
        service, [f"{PLAIN}/{job_id}" for job_id in ids], [f"/jobs/{job_id}" for job_id in ids], clients=READERS
    )


def listed(service: Service, ids: Sequence[str]) -> dict[str, Any]:
    """The thousandth page of `GET /jobs` against the first; `ids` are all jobs of the key, newest first."""
    first = f"/jobs?limit={PAGE_JOBS}"
    deep = f"{first}&cursor={ids[(DEEP_PAGE - 1) * PAGE_JOBS - 1]}"
    return in_turns(service, [first], [deep], clients=4)


def submitted(service: Service) -> dict[str, Any]:
    """`POST /jobs` from 50 clients."""
    service.load(["/jobs"], clients=WRITERS, seconds=2, body=SPEC)
    rounds = [service.load(["/jobs"], clients=WRITERS, seconds=ROUND_SECONDS, body=SPEC) for _ in range(ROUNDS)]
    return {
        "clients": WRITERS,
        "per_second": [found.per_second for found in rounds],
        "p50_ms": [found.p50_ms for found in rounds],
        "p99_ms": [found.p99_ms for found in rounds],
        "ratio": statistics.median(found.p99_ms / found.p50_ms for found in rounds),
    }


def started(environment: Mapping[str, str]) -> dict[str, Any]:
    """Seconds from the start of `flattengpt serve` to its first answer, and the processor's share of them."""
    seconds, busy = [], []
    command = [sys.executable, "-m", "cli.main", "serve", "--port", "0", "--json"]
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        httpx.get(f"{url}/healthz").raise_for_status()
        seconds.append(time.perf_counter() - begun)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process.terminate()
        process.wait(30)
        process.stdout.close()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy.append(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime)
    return {"seconds": seconds, "cpu_seconds": busy, "median": statistics.median(seconds)}


def through_the_service(folder: Path, model: Path) -> dict[str, Any]:
    """Seconds of the demo's job through an embedded service, from its submission to its end, against the command's."""
    data = folder / "embedded"
    tiny_checkpoint(data / "models" / "tiny")
    shutil.copytree(model, data / "models" / model.name)  # a link that leads out of the folder is refused
    request = folder / "request.json"
    request.write_text(json.dumps(DEMO), encoding="utf-8")
    command = [sys.executable, "-m", "cli.main", "compress", str(request), "--json", "--out"]
    rounds = []
    with embedded_service(data, folder / "service.log") as url, Client(url) as client:
        client.wait(client.submit(SPEC).id)  # by now the worker has started
        for number in range(JOB_ROUNDS):
            begun = time.perf_counter()
            done = subprocess.run(
                [*command, str(folder / f"out-{number}")],
                env=os.environ | {"FLATTENGPT_DATA_DIR": str(data)},
                capture_output=True,
                text=True,
                start_new_session=True,  # as the service's processes: the kernel may share processors by session
            )
            if done.returncode:
                raise RuntimeError(f"the command failed: {done.stderr}")
            alone = time.perf_counter() - begun
            begun = time.perf_counter()
            job = client.wait(client.submit(DEMO).id)
            if job.status != "succeeded":
                raise RuntimeError(f"the demo's job {job.status}: {job.error}")
            rounds.append([alone, time.perf_counter() - begun])
    return {"seconds": rounds, "ratio": statistics.median(through / alone for alone, through in rounds)}


def claims(found: Mapping[str, Any]) -> list[Claim]:
    """What was to be reached, of what was measured."""

    def at_most(what: str, value: float, bound: float) -> Claim:
        return Claim(what, value, f"<= {bound:g}", value <= bound)

    made = []
    if (show := found.get("show")) is not None:
        what = "`GET /jobs/{id}`, requests/s / those of a route with one primary-key `SELECT`"
        made.append(Claim(what, show["ratio"], ">= 0.6", show["ratio"] >= 0.6))
    if (pages := found.get("pages")) is not None:
        what = "thousandth page of `GET /jobs`, time / the first one's"
        made.append(at_most(what, 1 / pages["ratio"], 1.2))
    if (submit := found.get("submit")) is not None:
        made.append(at_most(f"`POST /jobs` from {WRITERS} clients, p99 / p50", submit["ratio"], 5))
    if (start := found.get("start")) is not None:
        made.append(at_most("start of the API to its first answer, seconds", start["median"], 2))
    if (job := found.get("job")) is not None:
        made.append(at_most("a job through the service, time / the command line's", job["ratio"], 1.05))
    return made


def draw(found: Mapping[str, Any], file: Path) -> None:
    """Each claim's figure as a share of its bound."""
    figure, axes = pyplot.subplots(figsize=(9, 3), layout="constrained")
    names = [claim["what"].replace("`", "") for claim in found["claims"]]
    shares = [claim["value"] / float(claim["bound"].split()[1]) for claim in found["claims"]]
    at_least = [claim["bound"].startswith(">=") for claim in found["claims"]]
    bars = axes.barh(names, shares, color=["tab:blue" if most else "tab:green" for most in at_least])
    axes.bar_label(bars, [f" {claim['value']:.2f} ({claim['bound']})" for claim in found["claims"]])
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(1, *shares))
    axes.set_xlabel("share of the bound; blue: at least it, green: at most it")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def measure(wanted: Sequence[str], folder: Path, wrk: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each wanted figure, as soon as it is known."""
    if {*wanted} - {"job"}:
        with closing(Database()) as database, closing(Broker(folder / "redis")) as broker:
            engine = make_engine(database.url)
            upgrade(engine)
            key = KeyStore(engine).create("benchmark", [Scope.JOBS_READ, Scope.JOBS_WRITE])
            fill(engine, key.record.id)
            with engine.connect() as connection:
                mine = text("SELECT id FROM job WHERE owner = :owner AND status = 'succeeded' ORDER BY id DESC")
                all_mine = text("SELECT id FROM job WHERE owner = :owner ORDER BY id DESC")
                done = list(connection.scalars(mine, {"owner": key.record.id}))
                ids = list(connection.scalars(all_mine, {"owner": key.record.id}))
            engine.dispose()
            data = folder / "data"
            tiny_checkpoint(data / "models" / "tiny")
            environment = {
                "FLATTENGPT_DATABASE_URL": database.url,
                "FLATTENGPT_BROKER_URL": broker.url,
                "FLATTENGPT_DATA_DIR": str(data),
                # Everything is counted, and nothing refused.
                "FLATTENGPT_RATE_LIMIT": "100000000/minute",
                "FLATTENGPT_MAX_QUEUED_JOBS": "1000000",
                "FLATTENGPT_MAX_JOBS_PER_KEY": "1000000",
            }
            if "start" in wanted:
                yield "start", started(environment)
            with serving(environment) as url:
                service = Service(url, key.key.get_secret_value(), folder, wrk)
                if "show" in wanted:
                    yield "show", shown(service, done[:: len(done) // 1000])
                if "pages" in wanted:
                    yield "pages", listed(service, ids)
                if "submit" in wanted:
                    yield "submit", submitted(service)
    if "job" in wanted:
        yield "job", through_the_service(folder, ensure_demo_model(Settings().data_dir.absolute()))


def main() -> None:
    """Measure what is asked for, write the JSON and the picture, and fail if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "api.json")
    parser.add_argument("--only", nargs="*", choices=FIGURES, default=FIGURES, help="figures to measure anew")
    arguments = parser.parse_args()
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("wrk is not installed: apt-get install wrk, or see https://github.com/wg/wrk")
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    found |= {"jobs": JOBS, "events": EVENTS, "processors": os.cpu_count(), "load_average": os.getloadavg()[0]}
    with TemporaryDirectory(prefix="flattengpt-api-") as folder:
        for name, figure in measure(arguments.only, Path(folder), wrk):
            found[name] = figure
            found["claims"] = [vars(claim) for claim in claims(found)]
            write_json(arguments.out, found)
            draw(found, arguments.out.with_suffix(".svg"))
            print(name, figure, flush=True)  # noqa: T201
    failed = [claim["what"] for claim in found["claims"] if not claim["holds"]]
    raise SystemExit(f"does not hold: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
