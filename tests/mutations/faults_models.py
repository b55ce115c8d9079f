"""Faults of the catalogue: claims, leases, outbox, idempotency, retention, audits, queue, listings."""

from __future__ import annotations

from tests.mutations.planting import Fault

MODEL_FAULTS = (
    Fault(
        "claims: a held place is given away",
        "models/objects/claims.py",
        "        raise holder_of(session, place, by)\n",
        "        return\n",
        ("tests/integration/test_catalogue_claims.py::test_a_held_place_is_refused[sqlite-object-copy]",),
    ),
    Fault(
        "claims: a writer does not look for readers",
        "models/objects/claims.py",
        'if _is_claimed(session, object_id, "read"):',
        "if False:",
        ("tests/integration/test_catalogue_claims.py::test_readers_share_and_writers_exclude[sqlite]",),
    ),
    Fault(
        "claims: an ended transfer keeps its places",
        "models/transfers/outcomes.py",
        "    free_claims_of_transfer(session, row.id)\n",
        "",
        ("tests/integration/test_catalogue_claims.py::test_the_place_of_an_ended_transfer_is_free[sqlite-copy]",),
    ),
    Fault(
        "fence: writes do not name the epoch",
        "models/transfers/queue.py",
        "        Transfer.epoch == hold.epoch,\n",
        "",
        (
            "tests/integration/test_catalogue_fencing.py::"
            "test_every_write_of_a_lost_hold_is_refused[sqlite-taken again by ourselves]",
        ),
    ),
    Fault(
        "fence: taking a transfer does not raise its epoch",
        "models/transfers/queue.py",
        "        row.epoch += 1\n",
        "",
        ("tests/integration/test_catalogue_fencing.py::test_reaping[sqlite]",),
    ),
    Fault(
        "lease: a live mover loses its transfers",
        "models/transfers/queue.py",
        "Transfer.ended.is_(None), Transfer.lease_until < now(session))",
        "Transfer.ended.is_(None))",
        ("tests/integration/test_catalogue_fencing.py::test_reaping[sqlite]",),
    ),
    Fault(
        "lease: two processes hold one at a time",
        "models/core/leases.py",
        "    if lease is None or (lease.holder != holder and lease.until > time):\n",
        "    if lease is None:\n",
        ("tests/integration/test_catalogue_keeping.py::test_one_holds_a_lease_at_a_time[sqlite]",),
    ),
    Fault(
        "outbox: a request is not posted to the movers",
        "models/core/outbox.py",
        '    messages = (("", REQUESTS_QUEUE, body), (EVENTS_EXCHANGE, event, told))\n',
        "    messages = ((EVENTS_EXCHANGE, event, told),)\n",
        (
            "tests/integration/test_catalogue_transfers.py::"
            "test_a_request_is_one_row_its_claims_and_its_messages[sqlite]",
        ),
    ),
    Fault(
        "outbox: the event of a transfer's end is missing",
        "models/transfers/outcomes.py",
        "    post_transfer_event(session, row, event, data)\n",
        "",
        ("tests/integration/test_catalogue_transfers.py::test_copy[sqlite]",),
    ),
    Fault(
        "outbox: housekeeping forgets what the broker has not confirmed",
        "models/core/outbox.py",
        "        old = old.where(OutboxMessage.sent.is_not(None))\n",
        "        pass\n",
        (
            "tests/integration/test_catalogue_keeping.py::"
            "test_the_outbox_keeps_what_the_broker_has_not_confirmed[sqlite-True-left0]",
        ),
    ),
    Fault(
        "idempotency: the fingerprint of a request is not compared",
        "models/core/idempotency.py",
        "if row.fingerprint != fingerprint:",
        "if False:",
        ("tests/integration/test_catalogue_idempotency.py::test_another_request_under_the_key_is_refused[sqlite]",),
    ),
    Fault(
        "idempotency: who lost the key makes something under it",
        "models/core/idempotency.py",
        "    if not _update(session, key, holder, subject=subject):\n",
        "    if _update(session, key, holder, subject=subject) is None:\n",
        ("tests/integration/test_catalogue_idempotency.py::test_who_lost_the_key_makes_nothing[sqlite]",),
    ),
    Fault(
        "queue: what is past its deadline is taken",
        "models/transfers/queue.py",
        "or_(Transfer.deadline.is_(None), Transfer.deadline > time)",
        "Transfer.id.is_not(None)",
        ("tests/integration/test_control.py::test_what_waits_at_its_deadline_ends_and_is_not_taken[sqlite]",),
    ),
    Fault(
        "queue: the lowest priority goes first",
        "models/transfers/queue.py",
        "for priority in Priority:",
        "for priority in reversed(Priority):",
        ("tests/integration/test_control.py::test_the_higher_priority_is_taken_first_and_of_one_the_older[sqlite]",),
    ),
    Fault(
        "queue: of one priority the same pair of machines goes again and again",
        "models/transfers/fair_share.py",
        "        return turn.served + PATIENCE * self._held[turn.pair], turn.pair\n",
        "        return 0, turn.pair\n",
        ("tests/integration/test_fair_share.py::test_two_machines_share_the_slots_whatever_waits_for_each[sqlite]",),
    ),
    Fault(
        "queue: a new group goes before those that wait",
        "models/transfers/fair_share.py",
        ', Transfer.created <= bindparam("round_began"))',
        ")",
        ("tests/integration/test_fair_share.py::test_a_stream_of_new_groups_keeps_no_old_one_waiting[sqlite]",),
    ),
    Fault(
        "queue: a machine's limit of transfers is not applied",
        "models/transfers/queue.py",
        "    return {name for name, cap in caps.items() if running[name] >= cap}\n",
        "    return set()\n",
        (
            "tests/integration/test_limits.py::"
            "test_what_finds_its_machine_full_waits_untouched_and_hinders_no_other[sqlite]",
        ),
    ),
    Fault(
        "shared: transfers that share a run count one by one",
        "models/transfers/lookup.py",
        "func.count() - func.count(Transfer.shared_run)\n",
        "func.count()\n",
        ("tests/integration/test_shared_taking.py::test_a_shared_run_counts_as_one[sqlite]",),
    ),
    Fault(
        "shared: transfers wait for company",
        "models/transfers/queue.py",
        "if of_pair > min(slots) or ",
        "if of_pair or ",
        ("tests/integration/test_shared_taking.py::test_nothing_waits_for_company[sqlite]",),
    ),
    Fault(
        "shared: writes for many do not name the epoch",
        "models/transfers/queue.py",
        "if (hold := TransferLease(row.id, row.owner, row.epoch)) in wanted}",
        "for hold in wanted if hold.transfer == row.id}",
        ("tests/integration/test_shared_outcomes.py::test_one_whose_lease_is_lost_is_left_as_it_is[sqlite-copy]",),
    ),
    Fault(
        "shared: what leaves a run keeps its flow run",
        "models/transfers/queue.py",
        "        row.shared_run = row.flow_run_id = None\n",
        "        row.shared_run = None\n",
        ("tests/integration/test_shared_taking.py::test_what_leaves_a_shared_run_has_the_next_one_for_itself[sqlite]",),
    ),
    Fault(
        "queue: transfers of a drained machine are taken",
        "models/machines/limits.py",
        "    return most | dict.fromkeys(unavailable(session), 0)\n",
        "    return most\n",
        ("tests/integration/test_health.py::test_a_drained_machine_lets_what_runs_end_and_takes_nothing_new[sqlite]",),
    ),
    Fault(
        "queue: an attempt is counted that was not spent",
        "models/transfers/queue.py",
        "        row.attempts -= 1\n",
        "        pass\n",
        ("tests/integration/test_catalogue_transfers.py::test_back_to_the_queue_and_again[sqlite]",),
    ),
    Fault(
        "cancel: a transfer past its commit point ends at once",
        "models/transfers/cancel_pause.py",
        "    if row.owner is not None or row.past_commit_point:\n",
        "    if row.owner is not None:\n",
        ("tests/integration/test_control.py::test_what_may_have_its_name_is_looked_at_before_it_ends[sqlite-False]",),
    ),
    Fault(
        "listing: a cursor skips objects with the same sort key",
        "models/core/cursors.py",
        "compare(tuple_(*self.columns), tuple_(*values))",
        "compare(self.columns[0], values[0])",
        ("tests/integration/test_catalogue_listing.py::test_pages_of_every_sort_key_add_up[sqlite]",),
    ),
    Fault(
        "listing: a page that looked at enough rows is the last one",
        "models/core/bounded_pages.py",
        "last = edge if end is None else end[1:]",
        "last = None if end is None else end[1:]",
        (
            "tests/integration/test_filtered_lists.py"
            "::test_pages_of_every_filter_and_order_add_up[sqlite-only in order]",
        ),
    ),
    Fault(
        "listing: a page ends by its rows only",
        "models/core/cursors.py",
        "if shown and weight > rendering.most:",
        "if False:",
        ("tests/integration/api/test_page_bytes.py::test_page_ends_by_its_bytes[sqlite-/DM/info]",),
    ),
    Fault(
        "batch: what is wrong with an item fails the whole batch",
        "models/batches/item_admission.py",
        "        except (RequestError, CatalogueError) as exc:\n            item.error = exc\n",
        "        except (RequestError, CatalogueError):\n            raise\n",
        ("tests/integration/test_batches.py::test_an_item_that_cannot_be_done_fails_alone[sqlite]",),
    ),
    Fault(
        "batch: what changed since its items were judged is not seen",
        "models/batches/submission.py",
        "known = judged is not None and sources_stand(session, open_items(judged))",
        "known = judged is not None",
        ("tests/integration/test_batches.py::test_judged_batch_sees_what_changed_since[sqlite-delete_it-seen0-copy]",),
    ),
    Fault(
        "batch: a place that another one holds counts as claimed",
        "models/objects/bulk_claims.py",
        "if insert_columns(session, Claim, columns, free_only=True) == len(pairs):",
        "if insert_columns(session, Claim, columns, free_only=True) >= 0:",
        ("tests/integration/test_batches.py::test_judged_batch_gets_no_place_that_was_taken_since[sqlite]",),
    ),
    Fault(
        "batch: a directory gets the places that others hold",
        "models/batches/whole_directories.py",
        "if inserted(session, places.on_conflict_do_nothing()) != count:",
        "if inserted(session, places.on_conflict_do_nothing()) > count:",
        (
            "tests/integration/test_batch_directories.py::test_a_place_that_is_taken_meanwhile_is_the_items_error[sqlite]",
        ),
    ),
    Fault(
        "batch: a directory's objects are had whoever else has them",
        "models/batches/whole_directories.py",
        "if session.execute(select(_items.c.number).where(mine, theirs.is_not(None)).limit(1)).first() is not None:",
        "if False:",
        (
            "tests/integration/test_batch_directories.py::test_objects_of_a_directory_that_others_have_are_busy"
            "[sqlite-move-copy-expected2]",
        ),
    ),
    Fault(
        "archive: a bundle is removed while an object needs it",
        "models/objects/claims.py",
        "set(touched) - set(session.scalars(needed.distinct()))",
        "set(touched)",
        ("tests/integration/test_archives.py::test_an_activated_object_has_its_place_and_frees_its_part[sqlite]",),
    ),
    Fault(
        "retention: a held object is deleted",
        "models/submission.py",
        "if request.kind is TransferKind.DELETE and obj.held_since is not None:",
        "if False:",
        ("tests/integration/api/test_retention.py::test_a_held_object_is_not_deleted",),
    ),
    Fault(
        "retention: the last verified copy is deleted",
        "datamanager/domain/retention_decisions.py",
        "if not subject.proved or keeper is None or keeper == subject.id:",
        "if keeper is None:",
        ("tests/unit/test_retention_rules.py::test_no_rule_deletes_the_last_verified_copy_or_a_held_object",),
    ),
    Fault(
        "retention: the copy that remains is not looked at again",
        "models/retention/submission.py",
        "if other is None or _survivor(session, other) != proved or other.checksum != decision.subject.checksum:",
        "if other is None:",
        (
            "tests/integration/test_retention_races.py::"
            "test_what_changes_between_the_decision_and_the_act_is_seen[sqlite-survivor deleted]",
        ),
    ),
    Fault(
        "retention: the copy that remains is not claimed",
        "models/retention/submission.py",
        "        claim_reading(session, proved.object_id, transfer.id)\n",
        "",
        (
            "tests/integration/test_retention_races.py::"
            "test_the_copy_that_remains_is_kept_from_others_until_the_delete_has_ended[sqlite]",
        ),
    ),
    Fault(
        "audit: the second look is not taken",
        "flows/audit/second_pass.py",
        "        if again is not None and (again.kind.value == one.kind or one.kind == FindingKind.FOUND.value):\n",
        "        again = again or Finding(FindingKind(one.kind), one.place, one.object_id, one.expected, one.found)\n"
        "        if again is not None:\n",
        ("tests/integration/test_audit.py::test_what_changes_between_the_looks_is_no_finding[local-sqlite]",),
    ),
    Fault(
        "audit: an object that a transfer has claimed is changed",
        "models/audit/findings.py",
        "    return [row for row in rows if row.id not in busy]\n",
        "    return rows\n",
        (
            "tests/integration/test_audit.py::"
            "test_conclude_leaves_an_object_that_changed_after_the_second_look[sqlite-claimed]",
        ),
    ),
    Fault(
        "audit: an object that changed since it was looked at is changed",
        "models/audit/findings.py",
        " if is_same(row, wanted[row.id])]",
        "]",
        (
            "tests/integration/test_audit.py::"
            "test_conclude_leaves_an_object_that_changed_after_the_second_look[sqlite-changed]",
        ),
    ),
    Fault(
        "audit: any number of losses is believed",
        "flows/audit/second_pass.py",
        "if is_suspicious(lost, looked, most) and not exam.terms.accept_losses:",
        "if False:",
        ("tests/integration/test_audit.py::test_too_many_losses_are_not_believed[sqlite]",),
    ),
    Fault(
        "secrets: they stay when the transfer has ended",
        "models/transfers/outcomes.py",
        "    forget_secrets(session, row.id)\n",
        "",
        ("tests/integration/test_secrets.py::test_the_secrets_go_with_the_end[sqlite-complete]",),
    ),
    Fault(
        "schedule: the newest verified version is deleted",
        "models/external/schedules.py",
        "if obj.id == proved or obj.id in stuck or obj.held_since is not None:",
        "if obj.id in stuck or obj.held_since is not None:",
        ("tests/integration/test_schedules.py::test_the_newest_proved_version_stays[sqlite]",),
    ),
    Fault(
        "trail: a changed row is not found",
        "models/access/trail_chain.py",
        '        if not missing and record.get("hash") != hash_of(before.hash, record):\n',
        "        if False:\n",
        ("tests/unit/test_trail_chain.py::test_a_changed_row_is_named",),
    ),
    Fault(
        "trail: the hash of the last row that was pruned is not kept",
        "models/access/trail_links.py",
        '    _set(session, FIRST, Link(to, closing or ""))\n',
        "",
        ("tests/integration/test_trail.py::test_only_a_whole_prefix_is_pruned_and_its_hash_is_kept[sqlite]",),
    ),
    Fault(
        "trail: each address that is refused has a row",
        "models/access/refusals.py",
        "            if key not in self._first and len(self._first) >= self.most:\n",
        "            if False:\n",
        ("tests/unit/test_refusals.py::test_an_attacker_with_many_addresses_makes_few_rows",),
    ),
    Fault(
        "quotas: two requests at once are counted apart",
        "models/transfers/reservations.py",
        "        take_turns(session, _TURN | int(key_of(holder)[:12], 16))\n",
        "",
        (
            "tests/integration/test_reservations.py::"
            "test_a_request_waits_for_the_one_before_it_and_counts_it[postgresql]",
        ),
    ),
)
