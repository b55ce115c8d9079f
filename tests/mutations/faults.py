"""The table of faults that the tests must catch: each breaks one promise of the product by a small replacement in one
file. `tests/unit/test_mutations.py` checks that the table fits the code.
"""

from __future__ import annotations

from tests.mutations.faults_access import ACCESS_FAULTS
from tests.mutations.faults_engine import ENGINE_FAULTS
from tests.mutations.faults_models import MODEL_FAULTS
from tests.mutations.faults_service import SERVICE_FAULTS
from tests.mutations.faults_sources import SOURCE_FAULTS
from tests.mutations.planting import Fault

FAULTS: tuple[Fault, ...] = (*MODEL_FAULTS, *ENGINE_FAULTS, *SOURCE_FAULTS, *SERVICE_FAULTS, *ACCESS_FAULTS)
