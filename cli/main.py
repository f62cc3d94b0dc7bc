"""The `flattengpt` command: its parts put together."""

import importlib.metadata
from typing import Annotated

import typer

from cli import keys, local, remote, service
from cli.errors import ReadableErrors

app = typer.Typer(
    cls=ReadableErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(importlib.metadata.version("flattengpt"))
        raise typer.Exit


@app.callback()
def flattengpt(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Make a language model shallower: a checkpoint in, a stock checkpoint with fewer layers out.

    `compress`, `evaluate` and `diagnose` work on this machine without a service. `submit`, `watch`, `list`, `show`,
    `cancel`, `retry`, `delete`, `download` and `upload` talk to one, which `serve` runs; they send the API key in
    FLATTENGPT_API_KEY, which `keys create` makes. `doctor` finds a wrong setup. Exit codes: 0 good, 1 failed, 2 bad
    usage.
    """


app.add_typer(local.app)
app.add_typer(remote.app)
app.add_typer(service.app)
app.add_typer(keys.app, name="keys")

if __name__ == "__main__":
    app()
