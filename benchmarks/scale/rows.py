"""Objects and transfers of a large catalogue, the same ones at every run.

Machines and groups are skewed (a few have most), a group uses few machines, its files are registered in runs of up to
a thousand at the same moment, older ones are more often deleted or archived, paths are 3 to 12 deep. Two rows of a
million have a group, an originator, a name and a member of the metadata that no other row has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from random import Random

FIRST = datetime(2024, 1, 1, 0, 0, 0, 125, tzinfo=UTC)
SPAN = timedelta(days=700)
RARE = "two-of-a-million"
MACHINES = [f"machine{n:02d}" for n in range(24)]
GROUPS = [f"group-{n:03d}" for n in range(300)]
ORIGINATORS = ["", *(f"model-{n:02d}" for n in range(40))]
VARIABLES = ("tas", "pr", "psl", "hus850", "ua500", "va500", "tos", "zg500", "rlut", "snow_depth")
SUFFIXES = ("nc", "nc", "nc", "grib2", "tif", "csv", "log")
RUN = 1000
"""Objects of one run at most: of one moment, in one directory, with the same metadata but the step."""


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """The columns of an object; times are UTC."""

    id: str
    machine: str
    path: str
    filename: str
    place: str
    size: int | None
    metadata: str
    registered: datetime
    modified: datetime
    status: str
    originator: str
    group: str
    checksum: str | None


def object_rows(count: int, seed: int = 15) -> Iterator[ObjectRow]:
    """Yield so many objects in the order of their registration."""
    random = Random(seed)
    machine_weights = list(accumulate(1 / (n + 1) for n in range(len(MACHINES))))
    group_weights = list(accumulate(1 / (n + 1) ** 1.1 for n in range(len(GROUPS))))
    homes = {group: random.choices(MACHINES, cum_weights=machine_weights, k=3) for group in GROUPS}
    made, number = 0, 0
    while made < count:
        number += 1
        group = random.choices(GROUPS, cum_weights=group_weights)[0]
        size_of_run = min(random.randint(1, RUN), count - made)
        moment = FIRST + SPAN * (made / count)
        yield from _run(random, number, group, random.choice(homes[group]), moment, size_of_run, made)
        made += size_of_run


def _run(
    random: Random, number: int, group: str, machine: str, moment: datetime, size_of_run: int, first: int
) -> Iterator[ObjectRow]:
    age = 1 - (moment - FIRST) / SPAN
    originator = ORIGINATORS[min(len(ORIGINATORS) - 1, int(random.expovariate(0.15)))]
    experiment, member = f"exp{min(49, int(random.expovariate(0.1)))}", random.randint(1, 30)
    variable, suffix = random.choice(VARIABLES), random.choice(SUFFIXES)
    deep = "/".join(f"level{n}" for n in range(random.choice((0, 0, 0, 1, 2, 9))))
    path = f"{group}/{experiment}/run{number}/{deep}".rstrip("/")
    shared = {"experiment": experiment, "member": member, "format": suffix, "run": f"run{number}"}
    head = json.dumps(shared)[:-1]
    for step in range(size_of_run):
        filename = f"{variable}_{moment:%Y%m%d}_r{member}_{step:04d}.{suffix}"
        row_path, row_group, row_originator, metadata = path, group, originator, f'{head}, "step": {step}}}'
        if (first + step) % 500_000 == 1234:
            filename, row_group, row_originator = f"{variable}-{RARE}.nc", RARE, RARE
            metadata = f'{head}, "note": "{RARE}", "step": {step}}}'
        chance = random.random()
        gone = "DELETED" if chance < 0.4 * age else "ARCHIVED" if chance < 0.6 * age else "ACTIVE"
        status = "UNKNOWN" if chance > 0.9995 else gone
        modified = moment + timedelta(days=random.expovariate(0.05)) if chance < 0.6 * age else moment
        yield ObjectRow(
            f"{random.getrandbits(128) & ~(0xF000C << 60) | (0x40008 << 60):032x}",
            machine,
            row_path,
            filename,
            f"{row_path}/{filename}",
            None if chance > 0.999 else int(random.lognormvariate(14, 3)),
            metadata,
            moment,
            modified,
            status,
            row_originator,
            row_group,
            f"sha256:{random.getrandbits(256):064x}" if chance > 0.2 else None,
        )
