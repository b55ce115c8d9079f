"""The fault matrix: {copy, move, getexternal, shared runs} × each fault at a random point; nothing may be lost, doubled
or stuck."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.faults.evidence import keep, report
from tests.faults.faults import CATALOGUE_FULL, FAULTS, OF_SHARED_RUNS
from tests.faults.judging import violations
from tests.faults.plant import Plant
from tests.faults.results import Results
from tests.faults.trial import Fault, Trial
from tests.support.hearing import Ear

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def each(faults: Iterable[Fault]) -> list[Any]:
    """Return the faults as parameters. Each test process has a plant of its own, so faults strike beside each other."""
    return [
        pytest.param(fault, marks=pytest.mark.xdist_group(fault.name), id=fault.name.replace(" ", "-"))
        for fault in faults
    ]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", each(FAULTS))
def test_nothing_is_lost(plant: Plant, ear: Ear, fault: Fault, seed: int, results: Results | None) -> None:
    judge(Trial(plant, ear, fault, seed), results)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", each(fault for fault in FAULTS if fault.name in OF_SHARED_RUNS))
def test_nothing_of_a_shared_run_is_lost(
    plant: Plant, ear: Ear, fault: Fault, seed: int, results: Results | None
) -> None:
    trial = Trial(plant, ear, fault, seed, shared=True)
    judge(trial, results)
    assert max(map(len, trial.together.values())) == len(trial.cells), trial.together


@pytest.mark.xdist_group(CATALOGUE_FULL.name)
@pytest.mark.timeout(1200)
def test_nothing_is_published_that_cannot_be_recorded(
    plant_on_small_disk: Plant, seed: int, results: Results | None
) -> None:
    plant = plant_on_small_disk
    judge(Trial(plant, Ear(plant.amqp_url), CATALOGUE_FULL, seed), results)


def judge(trial: Trial, results: Results | None) -> None:
    """Run a trial; fail with all that is needed to see why when an invariant is violated."""
    try:
        found = trial.run()
        broken = {cell.name: violations(facts) for cell, facts in found}
        if (sentence := trial.works()) is not None:
            broken = {name: [*sentences, sentence] for name, sentences in broken.items()}
    except BaseException as exc:
        exc.add_note(keep(trial, {}))
        raise
    if results is not None:
        for cell, facts in found:
            if cell in trial.struck or broken[cell.name]:
                results.add(trial.fault.name, cell.column, trial.seed, facts.outcome, broken[cell.name])
        results.publish()
    if any(broken.values()):
        pytest.fail(keep(trial, broken), pytrace=False)
    print(report(trial, {}))  # noqa: T201 - shown with -rP, or when the tests are run with -s
    trial.clear()
