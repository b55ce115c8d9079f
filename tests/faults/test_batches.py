"""The fault matrix's column of batches: no item may be lost, doubled or stuck, whatever becomes of the others."""

from __future__ import annotations

import pytest

from tests.faults.batch_trial import OF_BATCHES, BatchTrial
from tests.faults.cells import BATCH
from tests.faults.evidence import keep
from tests.faults.judging import violations
from tests.faults.plant import Plant
from tests.faults.results import Results
from tests.faults.trial import Fault
from tests.support.hearing import Ear

pytestmark = [pytest.mark.faults, pytest.mark.slow]
EACH = [
    pytest.param(fault, marks=pytest.mark.xdist_group(fault.name), id=fault.name.replace(" ", "-"))
    for fault in OF_BATCHES
]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", EACH)
def test_nothing_of_a_batch_is_lost(plant: Plant, ear: Ear, fault: Fault, seed: int, results: Results | None) -> None:
    trial = BatchTrial(plant, ear, fault, seed)
    try:
        found = trial.run()
    except BaseException as exc:
        exc.add_note(keep(trial, {}))
        raise
    broken = {cell.name: sentences for cell, facts in found if (sentences := violations(facts))}
    if results is not None:
        told = [f"item {name}: {sentence}" for name, sentences in broken.items() for sentence in sentences]
        results.add(fault.name, BATCH, seed, trial.outcomes(found), told)
    if broken:
        pytest.fail(keep(trial, broken), pytrace=False)
    trial.clear()
