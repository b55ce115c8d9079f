"""What machines.toml names and is not there is told at the start, with the machine's name; nothing is stopped by it."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from datamanager.machines import Machine, Machines, TransportKind, missing_files
from deployments.composition import tell_missing
from flows.runtime.reachability import tell_missing_base_dirs
from tests.support.auditing import Plant


def test_tell_missing_names_machine_key_and_path(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    lines: list[str] = []
    remote: dict[str, Any] = {"transport": TransportKind.SFTP, "host": "a.example", "base_dir": "/data"}
    machines = {
        "well": Machine(name="well", identity_file=key, **remote),
        "plain": Machine(name="plain", **remote),
        "keyless": Machine(name="keyless", identity_file=tmp_path / "no-key", **remote),
        "here": Machine(name="here", transport=TransportKind.LOCAL, base_dir=str(tmp_path)),
        "gone": Machine(name="gone", transport=TransportKind.LOCAL, base_dir=str(tmp_path / "gone")),
    }
    tell_missing(Machines(machines), lines.append)
    assert lines == [
        f"machines.keyless.identity_file: {tmp_path}/no-key does not exist",
        f"machines.gone.base_dir: {tmp_path}/gone does not exist",
    ]
    assert [list(missing_files(machine)) for machine in machines.values()] == [
        *([], [], ["identity_file"], []),
        ["base_dir"],
    ]


def test_mover_names_a_remote_base_dir_that_is_missing(plant: Plant, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    said = f"machines.here.base_dir: {plant.folder} does not exist on the machine"
    asyncio.run(tell_missing_base_dirs(plant.services))
    assert said not in caplog.messages
    shutil.rmtree(plant.folder)
    asyncio.run(tell_missing_base_dirs(plant.services))
    assert (said in caplog.messages) == (plant.machine.transport is TransportKind.SFTP)
