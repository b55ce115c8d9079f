"""Logging: one JSON object a line on standard error, for our own code and for the libraries alike."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass

import structlog

BY_CLIENTS = ("asyncio", "uvicorn.error", "deployments.client_connections")
"""Loggers whose lines anybody can cause who connects to us, as often as he likes."""
BURST = 10
"""Lines of one kind in a PERIOD; how many more there were is said with the first one of a later period."""
PERIOD = 60.0  # seconds


@dataclass(slots=True)
class _Count:
    begun: float
    lines: int = 0


class RateFilter(logging.Filter):
    """Lets BURST lines in a PERIOD pass from each place in the code of the loggers BY_CLIENTS; of others all."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[tuple[str, str, int], _Count] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line is to be written; note in it how many before it were not."""
        if record.name not in BY_CLIENTS:
            return True
        now, place = time.monotonic(), (record.name, record.pathname, record.lineno)
        count = self._counts.setdefault(place, _Count(now))
        if now - count.begun >= PERIOD:
            left_out, self._counts[place] = count.lines - BURST, _Count(now, 1)
            if left_out > 0:
                record.left_out = left_out
            return True
        count.lines += 1
        return count.lines <= BURST


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
    handler.addFilter(RateFilter())
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
