"""The commands that run the service's parts: serve, worker, sweep, migrate; and those that look after it.

`doctor` looks at the setup, `track` tells MLflow of a job again.
"""

import gc
import json
import signal
import threading
from typing import Annotated

import typer

from cli.errors import FAILED
from cli.options import DEFAULT_URL, Json, Url, queue_names
from cli.screen import out, print_json, say_finding
from cli.stdin_watch import stop_when_stdin_ends
from jobs.logs import configure_logs
from jobs.settings import Settings

app = typer.Typer()

WhileStdinOpen = Annotated[
    bool, typer.Option("--while-stdin-open", help="Stop when standard input ends, e.g. because the caller died.")
]


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    while_stdin_open: WhileStdinOpen = False,
    as_json: Json = False,
) -> None:
    """Serve the HTTP API.

    It asks for API keys (`flattengpt keys create`) unless FLATTENGPT_AUTH=none says that it is for this machine alone.
    Without FLATTENGPT_BROKER_URL everything is embedded: SQLite, a worker and the sweeper run beside the API and
    stop with it. With it this is the API alone. The first line on standard output is the address.
    """
    # What the server's libraries make, which no other command needs, is there to stay. The collector went through it
    # again and again while it grew, for 15 % of the time to the first answer (measured); now it never does.
    gc.disable()
    from cli.serve import serve as run

    gc.freeze()
    gc.enable()
    settings = _set_up(while_stdin_open)
    run(
        host,
        port,
        settings,
        lambda url: print(json.dumps({"url": url}) if as_json else url, flush=True),  # noqa: T201
    )


@app.command()
def worker(
    queues: Annotated[
        str | None,
        typer.Option(help="Queues to serve, comma-separated.", show_default="all of FLATTENGPT_QUEUES"),
    ] = None,
    pool: Annotated[str, typer.Option("--pool", help="Celery's pool: prefork or solo.")] = "prefork",
    while_stdin_open: WhileStdinOpen = False,
) -> None:
    """Work on jobs, one at a time; the same as `celery -A worker.app worker -P prefork -c 1`."""
    served = queue_names(queues) if queues is not None else []
    _set_up(while_stdin_open)
    from jobs.broker import broker_queue
    from worker.app import app as celery

    options = ["--pool", pool, "--concurrency", "1"]
    if served:
        options += ["--queues", ",".join(map(broker_queue, served))]
    celery.worker_main(["worker", *options, "--without-gossip", "--without-mingle", "--without-heartbeat"])


@app.command()
def sweep() -> None:
    """Find lost jobs, wake workers for them, and deliver webhooks, until stopped. Safe to run several times at once."""
    settings = _set_up(while_stdin_open=False)
    from jobs.broker import make_announcer
    from jobs.database import make_engine
    from jobs.store import JobStore
    from jobs.sweeper import sweep_until
    from worker.webhooks import delivering

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    engine = make_engine(settings.database)
    with delivering(settings, engine):
        sweep_until(stop, JobStore(engine), make_announcer(settings), settings)


@app.command()
def migrate() -> None:
    """Bring the database's schema to the newest version. An embedded service does so itself."""
    settings = _set_up(while_stdin_open=False)
    from jobs.database import make_engine, upgrade

    engine = make_engine(settings.database)
    upgrade(engine)
    out.print(f"{engine.dialect.name}: the schema is up to date")


@app.command()
def track(job_id: Annotated[str, typer.Argument(help="The job's id.")], as_json: Json = False) -> None:
    """Tell the MLflow server of a job now: workers do so by themselves, unless the server was away when the job ended.

    Run it where the workers' settings are. Telling it again changes nothing.
    """
    settings = _set_up(while_stdin_open=False)
    from worker.track import track as run

    run_id = run(settings, job_id)
    if as_json:
        print_json({"run_id": run_id, "experiment": settings.mlflow_experiment})
    else:
        out.print(f"run {run_id} of the experiment {settings.mlflow_experiment}")


@app.command()
def doctor(as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Find what is wrong with the setup here: settings, disk, database, broker, artifacts, models, Hub, service."""
    from cli import doctor as looks

    findings = []
    for finding in looks.examine(url):
        findings.append(finding)
        if not as_json:
            say_finding(finding.what, finding.state, finding.found, finding.remedy)
    if as_json:
        print_json(looks.as_json(findings))
    if not looks.is_well(findings):
        raise typer.Exit(FAILED)


def _set_up(while_stdin_open: bool) -> Settings:
    settings = Settings()
    configure_logs(settings)
    if while_stdin_open:
        # Longer than a clean stop takes: a worker first stops its job's process.
        stop_when_stdin_ends(3 * settings.stop_grace_seconds)
    return settings
