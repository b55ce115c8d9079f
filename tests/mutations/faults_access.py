"""Faults of access: what is seen, what a request needs, and grants that wait."""

from __future__ import annotations

from tests.mutations.planting import Fault

ACCESS_FAULTS = (
    Fault(
        "seen: a single row is shown to anybody",
        "models/access/visibility.py",
        ".where(key, *conditions(visible))",
        ".where(key)",
        ("tests/integration/test_visibility.py::test_what_is_foreign_and_what_does_not_exist_are_the_same[sqlite]",),
    ),
    Fault(
        "seen: a directory has foreign objects in it",
        "models/batches/item_admission.py",
        "    query = query.where(*visible.objects())\n",
        "",
        (
            "tests/integration/test_permission.py::"
            "test_directory_has_nothing_foreign_in_it[sqlite-copy_many-judged before]",
        ),
    ),
    Fault(
        "seen: a cursor names a foreign object",
        "models/core/bounded_pages.py",
        "                looking = search.hides\n",
        "                looking = False\n",
        ("tests/integration/test_visibility.py::test_cursor_names_no_foreign_object[sqlite-all are looked at]",),
    ),
    Fault(
        "permitted: the destination is not asked for",
        "models/submission.py",
        "        require_destination(request.grant, _kind(request), destination, group, owner)\n",
        "",
        (
            "tests/integration/test_permission.py::"
            "test_single_transfer_needs_what_its_kind_does[sqlite-copy-scopes4-NotAllowed]",
        ),
    ),
    Fault(
        "grants: a revoked token permits what it did",
        "models/access/standing.py",
        "            require_live(token, time)\n",
        "",
        (
            "tests/integration/test_access_tokens.py::"
            "test_what_waits_is_refused_when_its_person_is_permitted_less[sqlite]",
        ),
    ),
    Fault(
        "grants: a user of the broker is asked for the token alone",
        "models/access/standing.py",
        "(grant.means is Means.BROKER and found.credential not in of_users)",
        "False",
        (
            "tests/integration/test_access_tokens.py::"
            "test_user_of_the_broker_is_permitted_what_settings_and_token_say_now[sqlite]",
        ),
    ),
    Fault(
        "identity: a claim makes a service token of a person",
        "datamanager/identity/mapping.py",
        "        if is_reserved(person):\n",
        "        if not person:\n",
        ("tests/unit/test_identity_tokens.py::test_rule_cannot_put_a_reserved_name_together",),
    ),
    Fault(
        "certificates: they are signed without a row in the trail",
        "deployments/composition.py",
        "        signer = NotedSigner(signer, database)\n",
        "        pass\n",
        ("tests/integration/test_trail_processes.py::test_runtime_notes_the_certificates_of_its_logins[sqlite]",),
    ),
    Fault(
        "grants: what runs is not flagged",
        "models/transfers/withdrawal.py",
        ".values(stop_requested=FORBID)",
        ".values(stop_requested=Transfer.stop_requested)",
        ("tests/integration/test_access_tokens.py::test_what_runs_is_flagged_and_its_mover_stops_it[sqlite-working]",),
    ),
    Fault(
        "openapi: the document does not have an answer that each endpoint may give",
        "api/http/openapi.py",
        "    errors.NotAuthenticated,\n",
        "",
        ("tests/security/test_openapi_fuzz.py::test_each_answer_is_documented_and_none_is_a_fault[nobody-1]",),
    ),
    Fault(
        "reach: links lead a transfer out of the directories of its scopes",
        "flows/runtime/transfer_run.py",
        "        return replace(end, machine=within(end.machine, reach)) if reach else end\n",
        "        return end\n",
        (
            "tests/security/test_attacks_by_links.py::"
            "test_source_that_became_a_link_is_left[local-sqlite-copy-its directory]",
        ),
    ),
    Fault(
        "reach: what a link leads to is registered",
        "api/objects/register.py",
        "        require_place(asked, seen.behind or place, fields.group, ACTION)\n",
        "",
        ("tests/security/test_attacks_by_links.py::test_link_to_what_is_foreign_is_not_registered",),
    ),
    Fault(
        "commands: a name does what it likes to the terminal",
        "datamanager/cli/tables.py",
        "print(printable(str(line)), ",
        "print(str(line), ",
        ("tests/security/test_attacks_on_operators.py::test_terminal_obeys_no_name",),
    ),
    Fault(
        "client: the token goes where a list says that its next page is",
        "datamanager/client/connection.py",
        "        if urlsplit(url)[:2] != urlsplit(self._base)[:2]:",
        "        if not url:",
        ("tests/security/test_attacks_on_operators.py::test_token_goes_to_no_other_host",),
    ),
)
