"""The groups of figures, by the name that `--only` takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from benchmarks.figures import bulk, distant, machines, memory, small, web
from benchmarks.figures.scale import Scale
from benchmarks.race import Measurement
from benchmarks.servers import Stage

Group = Callable[[Stage, Scale], AbstractContextManager[Measurement]]
"""Makes the files, connects, provides what is to be measured, and tidies up."""

GROUPS: dict[str, Group] = {
    "put": bulk.put,
    "get": bulk.get,
    "put-20ms": distant.put,
    "get-20ms": distant.get,
    "small": small.near,
    "small-20ms": small.distant,
    "relay": machines.relay,
    "direct": machines.direct,
    "copy": machines.copy_within,
    "web": web.fetch,
    "memory": memory.relay,
}
