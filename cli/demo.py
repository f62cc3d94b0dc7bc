"""`make demo`: the whole journey on a real model, as a client sees it.

Gets the demo model, starts the service, posts a job over HTTP, shows its progress, and leaves the job and the
downloaded checkpoint in a folder. Stops everything it started, also when it is interrupted.
"""

import json
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from cli.client import Client
from cli.continuation import continue_prompt
from cli.demo_model import NAME, ensure_demo_model
from cli.demo_service import embedded_service
from cli.errors import CommandFailed, ServiceRefused, ServiceUnreachable
from cli.replies import Job
from cli.screen import err, follow, metrics_table, out
from flattengpt_core.errors import FlattenGPTError
from jobs.settings import Settings

OUTPUT = Path("demo-output")
PROMPT = "The sun rises in the east, and every morning the farmers of the valley"
NEW_TOKENS = 30
REQUEST: dict[str, Any] = {
    "model": f"local:{NAME}",
    "layers": 24,
    # Text that every Python ships, so that nothing but the package registry is needed.
    "calibration": {"dataset": "python-docs", "samples": 64, "sequence_length": 256},
    "evaluation": {"perplexity": ["python-docs"], "sequence_length": 512, "windows": 16},
    "labels": {"from": "make demo"},
}


def demo(data_dir: Path, output: Path, request: Mapping[str, Any] = REQUEST) -> None:
    """Run the journey with the job `request`; raises FlattenGPTError if any part of it fails."""
    err.print(f"demo model: {NAME}")
    dense = ensure_demo_model(data_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "job.json").unlink(missing_ok=True)
    shutil.rmtree(output / "model", ignore_errors=True)
    with embedded_service(data_dir, data_dir / "logs" / "demo-service.log") as url, Client(url) as client:
        err.print(f"service: {url}")
        job = _run_job(client, request)
        client.download(job, output / "model")
        _write_aside(output / "job.json", json.dumps(job.model_dump(mode="json"), indent=2) + "\n")
    if job.metrics is None:
        raise CommandFailed(f"Job {job.id} succeeded without metrics.")
    out.print(metrics_table(job.metrics))
    out.print(f"[bold]prompt[/]      {escape(PROMPT)}", soft_wrap=True)
    for name, folder in (("dense", dense), ("compressed", output / "model")):
        text = " ".join(continue_prompt(folder, PROMPT, new_tokens=NEW_TOKENS).split())
        out.print(f"[bold]{name:<11}[/] {escape(text)}", soft_wrap=True)
    out.print(f"the job: {output / 'job.json'}   the checkpoint: {output / 'model'}", soft_wrap=True)


def _run_job(client: Client, request: Mapping[str, Any]) -> Job:
    """Submit the job and follow it to its good end; interrupted, cancel it."""
    job = client.submit(request)
    err.print(f"job: {job.id}")
    try:
        ended = follow(client, job.id)
    except BaseException:
        _cancel(client, job.id)
        raise
    if ended.status != "succeeded":
        reason = ended.error["message"] if ended.error else "the service gives no reason"
        raise CommandFailed(f"Job {job.id} {ended.status}: {reason}")
    return ended


def _cancel(client: Client, job_id: str) -> None:
    """Cancel the job if it still can be, so that a later demo does not find it queued."""
    try:
        client.cancel(job_id)
    except (ServiceRefused, ServiceUnreachable):
        err.print(f"job {job_id} could not be cancelled")


def _write_aside(file: Path, text: str) -> None:
    aside = file.with_name(file.name + ".partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(file)


def main() -> int:
    """The exit code: 0 only if all of it happened."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        demo(Settings().data_dir, OUTPUT)
    except FlattenGPTError as error:
        err.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        err.print("interrupted; everything was stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
