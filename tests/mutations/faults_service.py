"""Faults of API, flows, processes, client and command line."""

from __future__ import annotations

from tests.mutations.planting import Fault

SERVICE_FAULTS = (
    Fault(
        "api: the Host header is not checked",
        "api/http/host_origin.py",
        "if len(hosts) != 1 or not host_allowed(hosts[0], settings):",
        "if len(hosts) != 1:",
        ("tests/integration/api/test_http.py::test_host_and_origin",),
    ),
    Fault(
        "api: the Origin header is not checked",
        "api/http/host_origin.py",
        'if any(not same_origin(origin, hosts[0]) for origin in headers.getlist("origin")):',
        "if False:",
        ("tests/unit/test_api_guard.py::test_one_host_and_no_foreign_origin",),
    ),
    Fault(
        "api: a body without a length has no limit",
        "api/http/bodies.py",
        "            if len(body) > limit:\n",
        "            if False:\n",
        ("tests/integration/api/test_http.py::test_a_body_without_a_length_is_limited_too",),
    ),
    Fault(
        "api: an error has the status of another",
        "api/http/problems.py",
        "    errors.ObjectDeleted: 410,\n",
        "",
        ("tests/unit/test_api_problems.py::test_every_error_has_the_contracts_status",),
    ),
    Fault(
        "api: a fault of ours is described to the client",
        "api/http/problems.py",
        "ours = status == 500",
        "ours = False",
        ("tests/unit/test_api_problems.py::test_a_fault_of_ours_is_not_described",),
    ),
    Fault(
        "api: an unknown parameter of a listing is ignored",
        "api/http/query.py",
        "            wrong[name] = f\"unknown; known: {', '.join(known)}\"\n",
        "            continue\n",
        ("tests/unit/test_api_listing.py::test_what_is_wrong_is_named",),
    ),
    Fault(
        "api: JSON is sent to a client that has no preference",
        "api/http/responses.py",
        'quality("application", "json") > quality("text", "plain")',
        'quality("application", "json") >= quality("text", "plain")',
        ("tests/unit/test_api_answers.py::test_accept",),
    ),
    Fault(
        "api: a failure of the service is repeated for its key",
        "api/http/idempotency.py",
        "            await _settle(context, slot, idempotency.release if doubtful else idempotency.drop)\n"
        "            raise\n",
        "            pass\n",
        ("tests/integration/api/test_idempotency.py::test_a_failure_of_the_service_is_not_kept",),
    ),
    Fault(
        "retry: a fatal error is retried",
        "flows/runtime/retry.py",
        "    return error.retryable and (resend or not isinstance(error, ChecksumMismatch))\n",
        "    return resend or not isinstance(error, ChecksumMismatch)\n",
        ("tests/unit/test_retry.py",),
    ),
    Fault(
        "retry: the number of attempts has no end",
        "flows/runtime/retry.py",
        "    if attempt.last:\n",
        "    if False:\n",
        ("tests/unit/test_retry.py::test_decide",),
    ),
    Fault(
        "retry: a client waits for a machine that is away",
        "flows/runtime/retry.py",
        "if isinstance(error, MachineUnavailable) and fail_fast:",
        "if False:",
        ("tests/unit/test_retry.py::test_may_pass",),
    ),
    Fault(
        "cancel: a batch whose files may have names forgets that it was cancelled",
        "flows/runtime/lifecycle.py",
        "                    row.stop_requested = queue.CANCEL  # also when it was asked for in Prefect\n",
        "                    pass\n",
        ("tests/integration/test_endings.py::test_a_batch_that_is_to_stop_looks_at_its_intents_first",),
    ),
    Fault(
        "cleanup: a partial file of a lost attempt is left behind",
        "models/transfers/cancel_pause.py",
        ".values(leaves_partial=True)",
        ".values(leaves_partial=False)",
        (
            "tests/integration/test_litter.py::"
            "test_what_a_mover_made_after_it_had_lost_its_transfer_is_removed[sqlite-error-after the end]",
        ),
    ),
    Fault(
        "sweep: the partial file of an open transfer is removed",
        "datamanager/domain/audit/partial_names.py",
        "    if open_owner:\n",
        "    if False:\n",
        ("tests/unit/test_audit_rules.py::test_what_a_sweep_spares",),
    ),
    Fault(
        "worker: an entry point that is not ours is run",
        "deployments/orchestrator/flow_registry.py",
        "    return ENTRYPOINTS.get(entrypoint) or FORMER_ENTRYPOINTS.get(entrypoint)\n",
        "    return ENTRYPOINTS.get(entrypoint) or FORMER_ENTRYPOINTS.get(entrypoint) or load_flow(entrypoint)\n\n\n"
        "def load_flow(entrypoint: str) -> AnyFlow:\n"
        '    return Flow(lambda: None, name="any")\n',
        ("tests/unit/test_flow_registry.py::test_flow_at_knows_no_other",),
    ),
    Fault(
        "amqp: a dead letter has the wrong reason",
        "deployments/amqp/submission.py",
        'return DeadLetter("unknown_type", ',
        'return DeadLetter("malformed_body", ',
        ("tests/unit/test_intake.py::test_what_cannot_be_processed_says_why",),
    ),
    Fault(
        "amqp: two requests have one idempotency key",
        "deployments/amqp/submission.py",
        "_digest([self.source, self.id])",
        "_digest(self.source + self.id)",
        ("tests/unit/test_intake.py::test_source_and_id_name_a_request_without_ambiguity",),
    ),
    Fault(
        "amqp: secrets are accepted in messages",
        "deployments/amqp/submission.py",
        '        refuse_secrets(fields.options, "in messages, which brokers store", fields.url)\n',
        "        pass\n",
        ("tests/integration/test_secrets.py::test_secrets_in_messages_are_refused_by_name",),
    ),
    Fault(
        "amqp: a message is acknowledged although its work could not be recorded",
        "deployments/amqp/consumer.py",
        "            return Later(self._later)\n",
        "            return Done()\n",
        ("tests/integration/test_consumer.py::test_a_transfer_whose_orchestrator_is_away_comes_again",),
    ),
    Fault(
        "notify: others may write into the directory of sockets",
        "datamanager/messaging/notifications.py",
        "            os.fchmod(self._directory, 0o700)  # who may write here may notify us, nobody else\n",
        "",
        ("tests/unit/test_notifications.py::test_the_directory_is_private_even_if_it_was_not",),
    ),
    Fault(
        "loops: a failure ends a loop of a process",
        "deployments/periodic.py",
        "except DataManagerError",
        "except ZeroDivisionError",
        ("tests/unit/test_periodic.py::test_every_waits_as_usual_after_an_error",),
    ),
    Fault(
        "client: an error of the service has another class here",
        "datamanager/client/connection.py",
        "    return by_code(code, detail, retryable=retryable)\n",
        "    return InternalError(detail, retryable=retryable)\n",
        ("tests/unit/test_client.py::test_what_the_service_raises_is_raised_here",),
    ),
    Fault(
        "client: a listing ends after its first page",
        "datamanager/client/connection.py",
        "            if following is None:\n",
        "            if True:\n",
        ("tests/unit/test_client.py::test_pages_are_followed",),
    ),
    Fault(
        "client: a broken call is not repeated",
        "datamanager/client/connection.py",
        "ATTEMPTS = 3\n",
        "ATTEMPTS = 1\n",
        ("tests/unit/test_client.py::test_a_broken_writing_call_is_repeated_under_its_key",),
    ),
    Fault(
        "cli: a bad setting has the exit code of a failure",
        "datamanager/cli/main.py",
        "sys.exit(2 if isinstance(exc, SettingsError | RequestError) else 1)",
        "sys.exit(1)",
        ("tests/unit/test_cli.py::test_dm_reports_bad_setting_in_one_line",),
    ),
    Fault(
        "cli: passwords stand on the command line of a process",
        "datamanager/cli/application.py",
        'argv = [sys.executable, "-m", module, *arguments]',
        'argv = [sys.executable, "-m", module, *arguments, *environment.values()]',
        ("tests/unit/test_cli.py::test_become_passes_passwords_in_environment_only",),
    ),
)
