"""Prefect's schedules on SQLAlchemy 2.1.

Prefect 3.8.8 inserts the runs of schedules as dicts that hold a `state` too, which is no column but a hybrid.
SQLAlchemy 2.0 passed over it; 2.1 wants to be told what a hybrid means in a bulk insert and raises, so that no schedule
ever gets a run. Here it is told: nothing. The states are inserted by a statement of their own, as before.

The embedded server calls `let_schedules_run`. For a server of its own this module stands in for `python -m prefect`:
`python -m deployments.prefect_schedules server start --host … --port …` (one process; not with --background).
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any

from sqlalchemy import inspect


def let_schedules_run() -> None:
    """Teach Prefect's model of a flow run the bulk insert. Idempotent; for the process that is Prefect's server."""
    from prefect.server.database.orm_models import FlowRun

    hybrid: Any = inspect(FlowRun).all_orm_descriptors["state"]
    if getattr(hybrid, "bulk_dml_setter", _pass_over) is None:
        hybrid.inplace.bulk_dml(_pass_over)


def _pass_over(_cls: Any, mapping: MutableMapping[str, Any], _value: Any) -> None:
    mapping.pop("state", None)


def main() -> None:
    """Be the command `prefect`, with schedules that run."""
    from prefect.cli import app

    let_schedules_run()
    sys.argv[0] = "prefect"
    app()


if __name__ == "__main__":
    main()
