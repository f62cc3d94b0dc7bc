"""The commands that talk to a service: submit, watch, list, show, cancel, retry, delete, download, upload."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from cli import options
from cli.client import Client
from cli.errors import CommandFailed
from cli.options import DEFAULT_URL, Json, Url
from cli.replies import Job
from cli.screen import err, follow, jobs_table, out, print_json, report_job
from cli.upload import upload_of
from jobs.settings import ClientSettings

app = typer.Typer()

JobId = Annotated[str, typer.Argument(help="The job's id, as `submit` and `list` show it.")]


@app.command()
def submit(
    model: Annotated[str, typer.Argument(metavar="MODEL|SPEC.yaml", help=f"{options.MODEL_HELP}, or a request file.")],
    sparsity: options.Sparsity = None,
    layers: options.Layers = None,
    max_perplexity_ratio: options.MaxPerplexityRatio = None,
    method: options.Method = None,
    calibration: Annotated[
        str | None, typer.Option(help="A text the service knows, or several joined by '+'.", show_default="wikitext2")
    ] = None,
    samples: options.Samples = None,
    sequence_length: options.SequenceLength = None,
    seed: options.Seed = None,
    recovery: options.RecoveryMethod = None,
    recovery_steps: options.RecoverySteps = None,
    recovery_train: options.RecoveryTrain = None,
    rank: options.Rank = None,
    learning_rate: options.LearningRate = None,
    text: Annotated[list[str] | None, typer.Option(help="Text to report perplexity on; may be repeated.")] = None,
    tasks: options.TaskNames = None,
    task_items: options.TaskItems = None,
    dtype: options.Dtype = None,
    revision: options.Revision = None,
    publish: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME|URL", help="Hub repository to upload to, or s3:// or file:// URL to write to."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Anyone may see the Hub repository.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")] = False,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Told when the job ends.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    queue: Annotated[
        str | None, typer.Option(help="Which workers: those that serve this queue.", show_default="default")
    ] = None,
    min_gpu_memory_gib: Annotated[
        float | None, typer.Option(help="Only workers with a GPU of so many GiB.", show_default="any worker")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 9; higher ones go first.", show_default="5")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key and request give the same job.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit a compression job. Options given here win over the request file.

    FLATTENGPT_HUB_TOKEN, if it is set, is the job's own token of the Hub: to read the model, and to publish.
    """
    request = options.read_request(
        model,
        {
            "sparsity": sparsity,
            "layers": layers,
            "target.max_perplexity_ratio": max_perplexity_ratio,
            "method": method,
            "calibration.dataset": calibration,
            "calibration.samples": samples,
            "calibration.sequence_length": sequence_length,
            "calibration.seed": seed,
            "recovery.method": recovery,
            "recovery.steps": recovery_steps,
            "recovery.train": recovery_train,
            "recovery.rank": rank,
            "recovery.learning_rate": learning_rate,
            "evaluation.perplexity": text,
            "evaluation.tasks": tasks,
            "evaluation.task_items": task_items,
            "dtype": dtype,
            "revision": revision,
            "publish": _place(publish),
            "publish.private": False if public else None,
            "publish.overwrite": True if overwrite else None,
            "webhook.url": webhook,
            "labels": options.parse_labels(label or []),
            "queue": queue,
            "min_gpu_memory_gib": min_gpu_memory_gib,
            "priority": priority,
        },
    )
    with Client(url) as client:
        job = client.submit(request, idempotency_key=idempotency_key, hub_token=ClientSettings().hub_token)
        if watch:
            err.print(f"job {job.id}", soft_wrap=True)
            _finish(follow(client, job.id), as_json=as_json)
        elif as_json:
            print_json(job.model_dump(mode="json"))
        else:
            out.print(job.id)
            if job.waiting_for:
                err.print(f"waits for {job.waiting_for}", markup=False, soft_wrap=True)


@app.command()
def watch(job_id: JobId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Follow a job to its end; exit 0 only if it succeeds."""
    with Client(url) as client:
        _finish(follow(client, job_id), as_json=as_json)


@app.command(name="list")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    label: Annotated[str | None, typer.Option(metavar="KEY=VALUE", help="Only jobs with this label.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    method: Annotated[str | None, typer.Option(help="Only jobs by this method.")] = None,
    created_after: Annotated[datetime | None, typer.Option(help="Only jobs submitted later.")] = None,
    created_before: Annotated[datetime | None, typer.Option(help="Only jobs submitted earlier.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most so many jobs.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on after an earlier page: its `next_cursor`.")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, newest first."""
    pairs = options.parse_labels([label] if label else []) or {}
    wanted = next((f"{key}:{value}" for key, value in pairs.items()), None)
    with Client(url) as client:
        page = client.page(
            status=status,
            label=wanted,
            model=model,
            method=method,
            created_after=created_after.astimezone() if created_after else None,
            created_before=created_before.astimezone() if created_before else None,
            cursor=cursor,
            limit=limit,
        )
    if as_json:
        print_json(page.model_dump(mode="json"))
        return
    out.print(jobs_table(page.jobs))
    if page.next_cursor:
        err.print(f"more: --cursor {page.next_cursor}")


@app.command()
def show(job_id: JobId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show a job as it is now."""
    with Client(url) as client:
        report_job(client.get(job_id), as_json=as_json)


@app.command()
def cancel(job_id: JobId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Cancel a job: a queued one at once, a running one within one layer."""
    with Client(url) as client:
        report_job(client.cancel(job_id), as_json=as_json)


@app.command()
def retry(job_id: JobId, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Submit the request of a job that failed or was cancelled again, as a new job.

    FLATTENGPT_HUB_TOKEN is sent along as by `submit`.
    """
    with Client(url) as client:
        report_job(client.retry(job_id, hub_token=ClientSettings().hub_token), as_json=as_json)


@app.command()
def delete(
    job_id: JobId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Remove a job that has ended, with its artifacts."""
    if not yes:
        typer.confirm(f"Remove job {job_id} and its artifacts?", abort=True, err=True)
    with Client(url) as client:
        client.delete(job_id)


@app.command()
def download(
    job_id: JobId,
    folder: Annotated[Path, typer.Option("--out", help="Folder to create for the checkpoint.")],
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Download a job's result; each file is checked against its SHA-256."""
    columns = (TextColumn("downloading"), BarColumn(bar_width=40), DownloadColumn())
    with Client(url) as client, Progress(*columns, console=err) as bar:
        job = client.get(job_id)
        task = bar.add_task("", total=sum(artifact.size for artifact in job.artifacts))
        client.download(job, folder, on_bytes=lambda size: bar.advance(task, size))
    if as_json:
        print_json({"folder": str(folder), "files": [artifact.path for artifact in job.artifacts]})
    else:
        out.print(str(folder), markup=False, soft_wrap=True)


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(help="A checkpoint folder or .gguf file, or a .txt or .jsonl text.")],
    name: Annotated[str | None, typer.Option(help="The NAME of local:NAME; by default the path's own.")] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Upload a model or a text that jobs can name as local:NAME."""
    what = upload_of(path, name)
    columns = (TextColumn("uploading"), BarColumn(bar_width=40), DownloadColumn())
    with Client(url) as client, Progress(*columns, console=err) as bar:
        task = bar.add_task("", total=what.size)
        local = client.upload(path, name=name, on_bytes=lambda size: bar.advance(task, size))
    if as_json:
        print_json({"kind": what.kind, "name": local, "size": what.size})
    else:
        out.print(local, markup=False, soft_wrap=True)


def _place(publish: str | None) -> dict[str, str] | None:
    """The request's `publish` for a repository or a URL."""
    return None if publish is None else {"url" if "://" in publish else "repo_id": publish}


def _finish(job: Job, *, as_json: bool) -> None:
    """Report an ended job; raises CommandFailed if it did not succeed."""
    if as_json or job.status == "succeeded":
        report_job(job, as_json=as_json)
    if job.status != "succeeded":
        raise CommandFailed(f"Job {job.id} {job.status}" + (f": {job.error['message']}" if job.error else "."))
