"""How every process of the service logs: a line an event on standard error, and tracebacks that hold no secrets."""

import sys

import structlog


def configure_logs() -> None:
    """Set the logging of this process up; called once, where it starts.

    structlog's own tracebacks show the local variables of every frame, among them tokens and database passwords.
    """
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
