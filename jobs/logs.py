"""How every process of the service logs: a line an event on standard error, whichever library the event comes from.

For people (`console`) or for machines (`json`). A line has the time (UTC), the level, the logger, and what the process
or the block around it has bound, such as the job's id. Tracebacks hold no local variables, and what looks like a
secret is blanked.
"""

import logging
import os
import sys
import threading
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from jobs import tracing
from jobs.redaction import redact
from jobs.settings import Settings

_QUIET = ("httpx", "uvicorn.access", "alembic.runtime.plugins")
"""The first two tell whole addresses, also of signed requests; what the service is asked `api.request_log` tells."""

_FIRST = ("timestamp", "level", "logger", "event")

log = structlog.get_logger()


def configure_logs(settings: Settings, **bound: str | int) -> None:
    """Set the logging of this process up; called once, where it starts.

    Processes that this one starts log in the same format, also where their output is a file.

    Args:
        bound: what every line of this process is about, whichever of its threads it comes from.
    """
    console = (settings.log_format or ("console" if sys.stderr.isatty() else "json")) == "console"
    os.environ["FLATTENGPT_LOG_FORMAT"] = "console" if console else "json"
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]

    def bind(_: object, __: str, event: EventDict) -> EventDict:
        return {**bound, **tracing.span_ids(), **event}

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        bind,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_for_people() if console else _for_machines()),
                _redacted,
            ],
        )
    )
    _gather_libraries()
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _for_people() -> list[Processor]:
    # structlog's own tracebacks show the local variables of every frame, among them tokens and database passwords.
    return [
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    ]


def _for_machines() -> list[Processor]:
    def ordered(_: object, __: str, event: EventDict) -> EventDict:
        return {**{name: event[name] for name in _FIRST}, **event}

    return [structlog.processors.format_exc_info, ordered, structlog.processors.JSONRenderer()]


def _redacted(_: object, __: str, line: Any) -> str:
    return redact(line)


class _PassingOn(logging.Logger):
    """A logger without handlers of its own: some libraries add one, which prints past the root's, or beside it."""

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802
        """Does nothing."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, True if name == "propagate" else value)


def _gather_libraries() -> None:
    """Let the root alone handle what libraries log, those that are imported already and those to come."""
    logging.setLoggerClass(_PassingOn)
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True


def _log_uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    """Python's last word on an exception, as an event."""
    if isinstance(error, Exception):
        log.critical("uncaught exception", exc_info=(kind, error, traceback))
    elif error is not None and kind is not SystemExit:  # which ends a thread without a word
        sys.__excepthook__(kind, error, traceback)
