"""What a person sees: a job's progress on standard error, its result as a table on standard output."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from cli.client import Client
from cli.replies import Event, Job
from flattengpt_core.retention import share_kept

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


_COLOURS = {"ok": "green", "warning": "yellow", "wrong": "bold red"}


def say_finding(what: str, state: str, found: str, remedy: str) -> None:
    """A line for what the doctor found, and one for what to do about it."""
    out.print(f"[{_COLOURS[state]}]{state:<8}[/] {escape(f'{what}: {found}')}", soft_wrap=True)
    if remedy:
        out.print(f"{'':<8} {remedy}", markup=False, soft_wrap=True)


def progress_bar() -> Progress:
    """A bar on standard error with what is going on, how far it is and for how long it has run."""
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=40),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=err,
    )


def follow(client: Client, job_id: str) -> Job:
    """Show a job's progress until it ends, and give it as it then is. Without a terminal, a line a stage."""
    with progress_bar() as bar:
        task = bar.add_task("queued", total=1.0)
        said = ""
        for event in client.events(job_id):
            if event.type == "progress":
                bar.update(task, completed=event.data["progress"])
            elif (text := _described(event)) and text != said:
                said = text
                bar.update(task, description=str(event.data.get("stage", event.type)))
                if not err.is_terminal:
                    err.print(text, markup=False, soft_wrap=True)
        job = client.get(job_id)
        bar.update(task, completed=job.progress, description=job.status)
    return job


def _described(event: Event) -> str:
    """A line for an event that changes what the job is doing; empty for others."""
    match event.type:
        case "stage":
            return str(event.data["stage"])
        case "died" | "lease_expired" | "handed_back":
            return f"attempt {event.attempt} ended: {event.data.get('reason')}"
        case "queued" | "started" | "cancelling" | "cancelled" | "succeeded" | "failed":
            return event.type
    return ""


def metrics_table(metrics: dict[str, Any]) -> Table:
    """Dense against compressed, and the ratio of the two."""
    dense, compressed = metrics["dense"], metrics["compressed"]
    table = Table("", "dense", "compressed", "ratio")
    for column in table.columns[1:]:
        column.justify = "right"
    rows: list[tuple[str, Any, Any, str]] = [
        ("layers", dense["layers"], compressed["layers"], "{:,}"),
        ("parameters", dense["parameters"], compressed["parameters"], "{:,}"),
        *(
            (f"perplexity ({_short(text)})", value, compressed["perplexity"].get(text), "{:.2f}")
            for text, value in dense["perplexity"].items()
        ),
        ("tokens/s", dense["tokens_per_second"], compressed["tokens_per_second"], "{:.1f}"),
        ("latency, ms", dense["latency_ms"], compressed["latency_ms"], "{:.1f}"),
    ]
    for name, before, after, form in rows:
        if before is not None and after is not None:
            table.add_row(name, form.format(before), form.format(after), f"{after / before:.3f}")
    for task, kept in compressed.get("retention", {}).items():
        table.add_row(f"accuracy ({_short(task)})", *(_accuracy(model, task) for model in (dense, compressed)),
                      share_kept(kept, "raw"))  # fmt: skip
        if kept["above_chance"] is not None:
            table.add_row("  above chance", "", "", share_kept(kept, "above_chance"))
    for task, figures in dense.get("generative", {}).items():
        for figure, before in figures.items():
            if not figure.endswith("_stderr"):
                table.add_row(
                    f"{figure} ({_short(task)})", f"{before:.6g}", f"{compressed['generative'][task][figure]:.6g}", ""
                )
    return table


def _short(name: str) -> str:
    """A text or task without the folders of its file, which would not fit into a table."""
    return Path(name).name


def print_evaluation(metrics: dict[str, Any]) -> None:
    """One model's figures, each with what it is measured on."""
    conventions = metrics["evaluation"]
    out.print(f"{metrics['layers']} layers, {metrics['parameters']:,} parameters")
    for text, value in metrics["perplexity"].items():
        measured = f"{conventions['split'][text]}, {conventions['tokens'][text]:,} tokens"
        told = f"{measured} in windows of {conventions['sequence_length']}"
        out.print(f"perplexity ({text}): {value:.3f} ({told})", markup=False, soft_wrap=True)
    for task in metrics["accuracy"]:
        line = f"accuracy ({task}): {_accuracy(metrics, task)}"
        if (told := metrics["tasks"].get(task)) is not None:
            line += f" ({told['metric']}, {told['items']} items, chance {told['chance']:.3f})"
        out.print(line, markup=False, soft_wrap=True)
    for task, figures in metrics["generative"].items():
        shown = ", ".join(f"{name} {value:.6g}" for name, value in figures.items() if value is not None)
        out.print(f"written answers ({task}): {shown}", markup=False, soft_wrap=True)
    if (sizes := conventions["benchmark"]) is not None:
        out.print(
            f"{metrics['tokens_per_second']:.1f} tokens/s ({sizes['new_tokens']} tokens after {sizes['batch_size']} x "
            f"{sizes['prompt_tokens']}), {metrics['latency_ms']:.1f} ms a pass over {sizes['prefill_batch_size']} x "
            f"{sizes['prefill_tokens']} tokens",
            soft_wrap=True,
        )


def _accuracy(metrics: dict[str, Any], task: str) -> str:
    error = metrics["accuracy_stderr"][task]
    return f"{metrics['accuracy'][task]:.4f}" + ("" if error is None else f" ± {error:.4f}")


def comparison_table(rows: list[dict[str, Any]]) -> Table:
    """One line a row of a comparison; quality and speed also against the dense model."""
    texts = list(rows[0]["perplexity"])
    asked = ["accuracy (mean)"] if rows[0]["accuracy"] else []
    table = Table(
        "method", "layers", "parameters", *(f"perplexity ({text})" for text in texts), *asked, "tokens/s ratio"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        qualities = [(row["perplexity"][text], row["perplexity"][text] / rows[0]["perplexity"][text]) for text in texts]
        speed = row["tokens_per_second_ratio"]
        table.add_row(
            row["method"] if row["calibration"] is None else f"{row['method']} on {row['calibration']}",
            str(row["layers"]),
            f"{row['parameters']:,}",
            *(f"{value:.2f} ({ratio:.2f}x)" for value, ratio in qualities),
            *(_accuracy(row, "mean") for _ in asked),
            "" if speed is None else f"{speed:.2f}",
        )
    return table


def ladder_table(rows: list[dict[str, Any]]) -> Table:
    """A row a size, the dense model first."""
    texts, tasks = rows[0]["perplexity"], rows[0]["accuracy"]
    table = Table("layers", "parameters", *(f"perplexity ({text})" for text in texts), *tasks, "tokens/s")
    for row in rows:
        speed = row["tokens_per_second"]
        table.add_row(
            str(row["layers"]),
            f"{row['parameters']:,}",
            *(f"{row['perplexity'][text]:.3f}" for text in texts),
            *(f"{row['accuracy'][task]:.4f}" for task in tasks),
            "" if speed is None else f"{speed:.1f}",
        )
    return table


def jobs_table(jobs: list[Job]) -> Table:
    """One line a job; its id is whole on the narrowest screen, since other commands ask for it."""
    table = Table(Column("id", no_wrap=True, min_width=26), "status", "progress", "model", "target", "created")
    for job in jobs:
        target = _target(job.request)
        doing = f"{job.status} ({job.stage})" if job.stage and not job.ended else job.status
        table.add_row(job.id, doing, f"{job.progress:.0%}", str(job.request["model"]), target, job.created_at[:19])
    return table


def _target(request: dict[str, Any]) -> str:
    if request.get("layers") is not None:
        return f"{request['layers']} layers"
    if request.get("sparsity") is not None:
        return f"sparsity {request['sparsity']}"
    return f"{request['target']['max_perplexity_ratio']} x perplexity"


def print_json(document: Any) -> None:
    """JSON on standard output, as it is: no colours, no wrapping."""
    out.print(json.dumps(document, indent=2), markup=False, soft_wrap=True)


def report_job(job: Job, *, as_json: bool) -> None:
    """A job's state on standard output: its table of metrics if it has one."""
    if as_json:
        print_json(job.model_dump(mode="json"))
        return
    out.print(f"{job.id}  {job.status}", soft_wrap=True)
    if job.waiting_for:
        out.print(f"waits for {job.waiting_for}", markup=False, soft_wrap=True)
    if job.error:
        out.print(str(job.error["message"]), markup=False, soft_wrap=True)
    if job.metrics:
        out.print(metrics_table(job.metrics))
    if "published" in job.links:
        out.print(f"published at {job.links['published']}", markup=False, soft_wrap=True)
