"""Logging: one JSON object a line on standard error, for our own code and for the libraries alike."""

from __future__ import annotations

import logging
import sys

import structlog


def _without_colours(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    event.pop("color_message", None)  # uvicorn's second copy of each message, for terminals
    return event


def configure_logging(level: int = logging.INFO) -> None:
    """Set up structlog and the standard library's logging; call once, at a process's start."""
    shared: list[structlog.types.Processor] = [
        _without_colours,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "httpcore", "urllib3", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for twice in ("aiormq", "aio_pika", "paramiko.transport"):  # we say ourselves what becomes of their faults
        logging.getLogger(twice).setLevel(logging.CRITICAL)
