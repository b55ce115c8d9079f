"""What this project relies on in Prefect without being promised it: each part by its name.

After an upgrade of Prefect this file says in seconds which part is gone or has another shape.
"""

from __future__ import annotations

import inspect
import pkgutil
from typing import Any, get_args

import aiosqlite
import pytest
from prefect import flow_engine, results
from prefect.client.orchestration import PrefectClient
from prefect.events import utilities
from prefect.events.worker import EventsWorker
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.workers.base import BaseWorker

from deployments.mover.worker import MoverWorker
from deployments.orchestrator.prefect_private import calling_actions

PRIVATE = [
    (flow_engine, "register_flow_run_suspension_request"),
    (AsyncFlowRunEngine, "_get_flow_run_suspension_request"),
    (AsyncFlowRunEngine, "setup_flow_run_suspension_request"),
    (BaseWorker, "_get_scheduled_flow_runs"),
    (utilities, "EventsWorker"),  # `emit_event` sends by its instance
    (EventsWorker, "_handle"),
    (aiosqlite.Connection, "_execute"),
    (aiosqlite.Connection, "_conn"),
    (BaseWorker, "_description"),
]
"""Names that begin with an underscore, or belong to modules that are not documented."""
OF_A_WORKER = ["_work_pool_name", "_work_queues", "_limit", "_last_polled_time", "_submitting_flow_run_ids"]
"""What a worker has once it is made."""
SHAPES = {
    AsyncFlowRunEngine.start: ["self"],
    AsyncFlowRunEngine.run_context: ["self"],
    AsyncFlowRunEngine.call_flow_fn: ["self"],
    AsyncFlowRunEngine.is_running: ["self"],
    AsyncFlowRunEngine.begin_run: ["self"],
    AsyncFlowRunEngine.create_flow_run: ["self", "client"],
    AsyncFlowRunEngine.setup_run_context: ["self", "client"],
    PrefectClient.read_flow_run: ["self", "flow_run_id"],
    EventsWorker.send: ["self", "item"],
    EventsWorker.attach_related_resources_from_context: ["self", "event"],
    aiosqlite.Connection.__init__: ["self", "connector", "iter_chunk_size", "loop"],
    BaseWorker.sync_with_backend: ["self"],
    BaseWorker.get_and_submit_flow_runs: ["self"],
    BaseWorker.run: ["self", "flow_run", "configuration", "task_status"],
    BaseWorker.start: ["self", "run_once", "with_healthcheck", "printer"],
}
"""The parameters of what we call or override beyond Prefect's documentation."""
OF_THE_SERVER = {
    "prefect.server.database.configurations:AioSqliteConfiguration.begin_transaction": [
        *("self", "session", "with_for_update"),
    ],
    "prefect.server.database.configurations:AioSqliteConfiguration.engine": ["self"],
    "prefect.server.database.configurations:AioSqliteConfiguration.session": ["self", "engine"],
    "prefect.server.database.dependencies:temporary_database_config": ["tmp_database_config"],
    "prefect.server.events.actions:CallWebhook.act": ["self", "triggered_action"],
    "prefect.server.events.actions:SendNotification.act": ["self", "triggered_action"],
    "prefect.server.api.server:create_app": ["settings", "ephemeral", "webserver_only", "final", "ignore_cache"],
}
"""The same of Prefect's server, whose import takes seconds."""
WITHIN_PREFECT = {
    *("do-nothing", "run-deployment", "pause-deployment", "resume-deployment"),
    *("cancel-flow-run", "change-flow-run-state", "delete-flow-run", "suspend-flow-run", "resume-flow-run"),
    *("pause-automation", "resume-automation"),
    *("pause-work-pool", "resume-work-pool", "pause-work-queue", "resume-work-queue"),
}
"""Actions of automations that connect to nobody."""


@pytest.mark.parametrize(("owner", "name"), PRIVATE, ids=lambda value: getattr(value, "__name__", value))
def test_private_name_is_there(owner: Any, name: str) -> None:
    assert hasattr(owner, name)


def test_worker_has_the_private_attributes() -> None:
    worker = MoverWorker()
    assert [name for name in OF_A_WORKER if not hasattr(worker, name)] == []


@pytest.mark.parametrize("function", SHAPES, ids=lambda function: function.__qualname__)
def test_function_has_the_expected_parameters(function: Any) -> None:
    assert list(inspect.signature(function).parameters) == SHAPES[function]


@pytest.mark.server
@pytest.mark.parametrize("name", OF_THE_SERVER)
def test_function_of_the_server_has_the_expected_parameters(name: str) -> None:
    assert list(inspect.signature(pkgutil.resolve_name(name)).parameters) == OF_THE_SERVER[name]


@pytest.mark.server
def test_actions_of_automations_call_nobody_or_are_refused() -> None:
    known = get_args(pkgutil.resolve_name("prefect.server.events.actions:ServerActionTypes"))
    types = {action.model_fields["type"].default for action in known if action not in calling_actions()}
    assert types == WITHIN_PREFECT  # a new one: does it call other hosts?


def test_results_ask_a_file_system_where_their_keys_are() -> None:
    assert 'getattr(self.result_storage, "_resolve_path", None)' in inspect.getsource(results)


@pytest.mark.server
def test_sqlite_transactions_take_their_begin_from_the_context() -> None:
    configurations = pkgutil.resolve_name("prefect.server.database.configurations")
    assert configurations.SQLITE_BEGIN_MODE.get() is None
    assert "SQLITE_BEGIN_MODE" in inspect.getsource(configurations.AioSqliteConfiguration.begin_sqlite_stmt)
