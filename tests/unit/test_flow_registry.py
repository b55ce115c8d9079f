"""Which flow an entry point names: those of today, those of earlier versions, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.orchestrator.flow_registry import ENTRYPOINTS, MAINTENANCE, entrypoint_of, flow_at

PREFECT_YAML: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text(encoding="utf-8"))
OF_THE_FIRST_VERSION = {
    "flows.copy_data:copy_data": "copy",
    "flows.move_data:move_data": "move",
    "flows.get_external:get_external": "getexternal",
    "flows.get_external:extract_data": "getexternal many",
    "flows.delete_data:delete_data": "delete",
    "flows.copy_data:copy_many": "copy many",
    "flows.move_data:move_many": "move many",
    "flows.archive_data:archive_data": "archive",
    "flows.archive_data:archive_many": "archive many",
    "flows.activate_data:activate_data": "activate",
    "flows.activate_data:activate_many": "activate many",
    "flows.fetch_recurring:recurring": "recurring",
    "flows.audit_machine:audit": "audit",
    "flows.sweep_files:sweep": "sweep",
    "flows.apply_retention:retention": "retention",
}
"""Entry points under which runs may wait in Prefect, and what their flows are called."""


@pytest.mark.parametrize(("entrypoint", "name"), OF_THE_FIRST_VERSION.items())
def test_flow_at_knows_entry_points_of_the_first_version(entrypoint: str, name: str) -> None:
    flow = flow_at(entrypoint)
    assert flow is not None
    assert flow.name == name


@pytest.mark.parametrize(
    "entrypoint", [None, "", "flows.copy_data", "flows.copy_data:copy", "os:system", "flows/copy_data.py:copy_data"]
)
def test_flow_at_knows_no_other(entrypoint: str | None) -> None:
    assert flow_at(entrypoint) is None


def test_prefect_yaml_deploys_every_flow_where_it_is() -> None:
    deployed = [entry["entrypoint"] for entry in PREFECT_YAML["deployments"]]
    assert sorted(deployed) == sorted(ENTRYPOINTS)
    assert all(entrypoint_of(flow) == entrypoint for entrypoint, flow in ENTRYPOINTS.items())


def test_maintenance_is_what_prefect_yaml_calls_so() -> None:
    tagged = {entry["entrypoint"] for entry in PREFECT_YAML["deployments"] if "maintenance" in entry["tags"]}
    assert tagged | {entrypoint_of(flow) for flow in MAINTENANCE if flow.name == "recurring"} == {
        entrypoint_of(flow) for flow in MAINTENANCE
    }
