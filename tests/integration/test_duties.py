"""What keeps the lease of a maintenance run: it ends with the work, not after it."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from datamanager.engine.control import Control
from datamanager.machines import Machine, TransportKind
from datamanager.settings import Settings
from flows.runtime.maintenance import kept
from models.database import Database
from tests.support.auditing import Plant


def test_no_renewal_outlives_the_work(tmp_path: Path, database: Database) -> None:
    """One that was under way when the lease was dropped would take it again, for nobody."""
    machine = Machine(name="here", transport=TransportKind.LOCAL, base_dir=str(tmp_path))
    parts = Plant(database, machine, tmp_path, tmp_path / "home").services
    settings = Settings(home=tmp_path / "home", heartbeat=timedelta(milliseconds=10))
    object.__setattr__(parts, "settings", settings)
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def renew(_: Session) -> None:
        begun.set()
        may_end.wait(5)
        ended.set()

    async def work() -> bool:
        async with kept(parts, renew, Control()):
            await asyncio.to_thread(begun.wait, 5)
            asyncio.get_running_loop().call_later(0.2, may_end.set)
        return ended.is_set()

    assert asyncio.run(work())
