"""What the command line says when something goes wrong: one readable line and an exit code, never a traceback.

Exit codes: 0 good, 1 failed, 2 bad usage (something the user typed or wrote in a file must change).
"""

from typing import Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from flattengpt_core.errors import FlattenGPTError, InvalidRequest

FAILED, BAD_USAGE = 1, 2


class ServiceRefused(FlattenGPTError):
    """The service answered with a problem document."""

    title = "The service refused the request"

    def __init__(self, message: str, *, http_status: int, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.http_status, self.retry_after_seconds = http_status, retry_after_seconds


class ServiceUnreachable(FlattenGPTError):
    code = "service_unreachable"
    title = "The service does not answer"
    retryable = True


class JobStillRuns(FlattenGPTError):
    code = "job_still_runs"
    title = "The job has not ended in the time that was given"


class DownloadDamaged(FlattenGPTError):
    code = "download_damaged"
    title = "A downloaded file is not what it should be"
    retryable = True


class CommandFailed(FlattenGPTError):
    code = "command_failed"
    title = "The command could not do its work"


class BadUsage(InvalidRequest):
    code = "bad_usage"
    title = "The command cannot be used like this"


class ReadableErrors(TyperGroup):
    """A group of commands whose known errors reach the terminal as one line on standard error."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn a known error into its line and its exit code."""
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            _say(_wrong_fields(error))
            raise typer.Exit(BAD_USAGE) from None
        except FlattenGPTError as error:
            _say(f"{error.field}: {error.message}" if error.field else error.message)
            raise typer.Exit(exit_code(error)) from None


def exit_code(error: FlattenGPTError) -> int:
    """2 where the user's words are to blame, else 1."""
    if isinstance(error, InvalidRequest):
        return BAD_USAGE
    if isinstance(error, ServiceRefused) and error.http_status == InvalidRequest.status:
        return BAD_USAGE
    return FAILED


def _say(message: str) -> None:
    one_line = " ".join(message.split())
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(one_line)}", highlight=False)


def _wrong_fields(error: ValidationError) -> str:
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, entry["loc"])), entry["msg"].removeprefix("Value error, "))))
        for entry in error.errors()
    )
