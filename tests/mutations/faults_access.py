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
        "grants: what runs is not flagged",
        "models/transfers/withdrawal.py",
        ".values(stop_requested=FORBID)",
        ".values(stop_requested=Transfer.stop_requested)",
        ("tests/integration/test_access_tokens.py::test_what_runs_is_flagged_and_its_mover_stops_it[sqlite-working]",),
    ),
)
