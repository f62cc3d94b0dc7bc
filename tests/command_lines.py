"""Commands as people write them down, in documentation and examples, held against what the command line takes."""

import re
import shlex
from collections.abc import Iterator, Sequence

import click
from typer.main import get_command

from cli.main import app

_NAME = re.compile(r"(?:\S*/)?flattengpt")
_ENDS = {"|", "||", "&&", ";", ">", ">>", "<", "2>", "&", ")"}


def commands_in(script: str) -> Iterator[list[str]]:
    """The arguments of each `flattengpt ...` of a shell script, also inside $(...)."""
    for line in logical_lines(script):
        lexer = shlex.shlex(line.replace("$(flattengpt", "( flattengpt"), posix=True, punctuation_chars="();|&<>")
        lexer.whitespace_split = True
        words = list(lexer)
        for index, word in enumerate(words):
            first = index == 0 or words[index - 1] in {*_ENDS, "("} or "=" in words[index - 1].split("/")[0]
            if first and _NAME.fullmatch(word):
                end = next((at for at in range(index, len(words)) if words[at] in _ENDS), len(words))
                yield words[index + 1 : end]


def logical_lines(script: str) -> Iterator[str]:
    """The script's commands, each on one line where it was continued, without comments of their own."""
    gathered = ""
    for line in script.splitlines():
        gathered += line
        if gathered.endswith("\\"):
            gathered = gathered[:-1] + " "
            continue
        if _is_whole(gathered):
            if gathered.strip() and not gathered.lstrip().startswith("#"):
                yield gathered.strip()
            gathered = ""
        else:
            gathered += "\n"
    assert not gathered.strip(), f"a quotation without an end: {gathered}"


def _is_whole(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def check_command(arguments: Sequence[str]) -> None:
    """Make sure that `flattengpt` takes these arguments; runs nothing. Raises click.ClickException."""
    command: click.Command = get_command(app)
    context = command.make_context("flattengpt", list(arguments))
    while isinstance(command, click.Group):
        _, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command = found
        context = command.make_context(command.name, rest, parent=context)
