"""The copy as a Prefect user writes it: a flow for the stock process worker, which starts an interpreter for each run.

Its bytes take the same way as ours: probe, partial file, verify, publish by the same engine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from uuid import uuid4

from prefect import flow, task

from datamanager.domain.location import Place
from datamanager.domain.states import TransferKind
from datamanager.engine.attempt import Attempt, Endpoint
from datamanager.engine.control import Control
from datamanager.engine.single import staged_file
from datamanager.machines import Machine, Machines, VerifyPolicy
from datamanager.transports.factory import Storages


@task
def copy_file(base_dir: str, source: str, dest: str) -> None:
    """Copy a file of this host to another name."""
    machine = Machine.model_validate({"name": "here", "transport": "local", "base_dir": base_dir})
    with tempfile.TemporaryDirectory() as control_dir:
        storages = Storages(Machines({machine.name: machine}), Path(control_dir))
        try:
            storage = storages.get(machine.name)
            job = Attempt(
                transfer=uuid4(),
                epoch=1,
                kind=TransferKind.COPY,
                source=Endpoint(Place.of(machine, source), machine, storage),
                destination=Endpoint(Place.of(machine, dest), machine, storage),
                overwrite=False,
                verify=VerifyPolicy.SHA256,
            )
            control = Control()
            staged_file.publish(staged_file.stage(job, control), control)
        finally:
            storages.close()


@flow(name="stock copy", persist_result=False)
def copy(base_dir: str, source: str, dest: str) -> None:
    """Copy a file of this host to another name."""
    copy_file(base_dir, source, dest)
