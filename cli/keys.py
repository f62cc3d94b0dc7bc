"""The commands that make, list and revoke API keys, on the service's database."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic_core import to_jsonable_python
from rich.table import Column, Table

from cli.errors import BadUsage, CommandFailed
from cli.options import Json
from cli.screen import err, out, print_json
from jobs.scopes import Scope
from jobs.settings import Settings

if TYPE_CHECKING:
    from jobs.keys import KeyStore

_COLUMNS = ("scopes", "state", "expires", "last used")

app = typer.Typer(
    no_args_is_help=True, help="Make, list and revoke API keys, on the database of FLATTENGPT_DATABASE_URL."
)


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What to call it; of one key in use at a time.")],
    scopes: Annotated[
        str, typer.Option(help=f"What it may do, joined by commas: {', '.join(Scope)} (everything).")
    ] = f"{Scope.JOBS_READ},{Scope.JOBS_WRITE}",
    expires_days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="Days until it expires.", show_default="never")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an API key and print it: this once, since only its hash is kept."""
    wanted = _scopes(scopes)
    with _keys() as keys:
        new = keys.create(name, wanted, expires_days=expires_days)
    if as_json:
        print_json({**to_jsonable_python(new.record), "key": new.key.get_secret_value()})
        return
    err.print(f"key {new.record.id} ({name}), shown only this once:", markup=False, soft_wrap=True)
    out.print(new.key.get_secret_value(), markup=False, soft_wrap=True)


@app.command(name="list")
def list_keys(as_json: Json = False) -> None:
    """List all keys, also expired and revoked ones, newest first."""
    with _keys() as keys:
        found = keys.all()
    if as_json:
        print_json({"keys": [to_jsonable_python(key) for key in found]})
        return
    # Wide enough on a narrow screen for an id, a scope, a state and a day; other words of a cell take more lines.
    table = Table(Column("id", no_wrap=True), "name", *(Column(name, min_width=10) for name in _COLUMNS))
    for key in found:
        table.add_row(
            key.id, key.name, " ".join(key.scopes), key.state, _minute(key.expires_at), _minute(key.last_used_at)
        )
    out.print(table)


@app.command()
def revoke(
    name_or_id: Annotated[str, typer.Argument(metavar="NAME_OR_ID", help="As `keys list` shows them.")],
    as_json: Json = False,
) -> None:
    """Make a key unusable, at once and for good. Its jobs go on; an `admin` key sees them."""
    with _keys() as keys:
        revoked = keys.revoke(name_or_id)
    if as_json:
        print_json(to_jsonable_python(revoked))
    else:
        out.print(f"{revoked.id}  {revoked.name}  revoked", markup=False, soft_wrap=True)


@contextmanager
def _keys() -> "Iterator[KeyStore]":
    """The keys of the settings' database; raises CommandFailed if it cannot be used."""
    from sqlalchemy.exc import DatabaseError  # the database's libraries are needed by no client of the service

    from jobs.database import make_engine, upgrade
    from jobs.keys import KeyStore

    settings = Settings()
    engine = make_engine(settings.database)
    try:
        if settings.embedded:
            upgrade(engine)
        yield KeyStore(engine)
    except DatabaseError as error:
        # Not the driver's words, which may hold addresses and values.
        raise CommandFailed(
            f"The database cannot be used ({type(error.orig).__name__}): is FLATTENGPT_DATABASE_URL right, and has "
            "`flattengpt migrate` been run?"
        ) from None
    finally:
        engine.dispose()


def _scopes(text: str) -> list[Scope]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in list(Scope):
            raise BadUsage(f"{name!r} is no scope; known are {', '.join(Scope)}.", field="--scopes")
    return [Scope(name) for name in names]


def _minute(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else ""
