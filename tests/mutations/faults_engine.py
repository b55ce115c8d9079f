"""Faults of the engine and of the transports: what reaches storage, and what stays there."""

from __future__ import annotations

from tests.mutations.planting import Fault

ONE_FILE = "tests/integration/test_one_file.py"

ENGINE_FAULTS = (
    Fault(
        "verify: the hashes of both ends are not compared",
        "datamanager/engine/single/verify.py",
        "if near != far:",
        "if False:",
        ("tests/integration/test_engine.py::test_damage_to_what_was_stored_is_caught[local-flip]",),
    ),
    Fault(
        "verify: the stored size is not compared",
        "datamanager/engine/single/verify.py",
        "if stored != moved.size:",
        "if False:",
        ("tests/integration/test_engine.py::test_damage_to_what_was_stored_is_caught[local-truncate]",),
    ),
    Fault(
        "verify: the source is not looked at again",
        "datamanager/engine/single/verify.py",
        "    if found.route is not Route.DOWNLOAD:\n        require_unchanged(job, found)\n",
        "",
        ("tests/integration/test_engine.py::test_a_source_that_changes_under_the_copy_is_caught[local]",),
    ),
    Fault(
        "transfer: the removal of an older partial file is sent whether there is one or not",
        "datamanager/engine/single/transfer.py",
        "    if lstat_or_none(session, found.part) is not None:\n",
        "    if True:\n",
        (
            "tests/integration/test_download_resume.py::"
            "test_what_a_server_does_late_leaves_the_next_try_alone[paramiko]",
        ),
    ),
    Fault(
        "restart: an earlier attempt's partial file that goes meanwhile ends the next attempt",
        "datamanager/engine/single/restart.py",
        "        with suppress(PathMissing):\n            session.remove(path)\n",
        "        session.remove(path)\n",
        (
            "tests/integration/test_restart.py::"
            "test_an_attempt_that_removes_its_part_late_leaves_the_next_one_alone[False]",
        ),
    ),
    Fault(
        "publish: the file gets its name before it is on stable storage",
        "datamanager/engine/single/transfer.py",
        "    writers[0].flush()\n",
        "",
        ("tests/integration/test_engine.py::test_relay_flushes_the_partial_file_before_it_is_renamed[local]",),
    ),
    Fault(
        "publish: another file with the name is taken for ours",
        "datamanager/engine/single/verify.py",
        "    if there is None or there.kind is not FileKind.FILE or there.size != intent.size:\n        return False\n"
        "    return there.mtime == intent.mtime if intent.sha256 is None else"
        " stored_sha256(session, path) == intent.sha256\n",
        "    return True\n",
        ("tests/integration/test_engine.py::test_a_file_that_appears_in_the_last_moment_is_left[local]",),
    ),
    Fault(
        "move: a source that changed is removed",
        "datamanager/engine/single/source_removal.py",
        "    return (now.kind, now.size, now.mtime) == (FileKind.FILE, intent.size, intent.source_mark.mtime)\n",
        "    return True\n",
        ("tests/integration/test_source_removal.py::test_remove_source_keeps_an_old_file_of_another_time[openssh]",),
    ),
    Fault(
        "move: a source that was written again within the second is removed",
        "datamanager/engine/single/source_removal.py",
        "    return now.last_change + STEP <= mark.read\n",
        "    return True\n",
        (
            "tests/integration/test_source_removal.py::"
            "test_remove_source_keeps_what_was_written_since[local-sha256-written_within_the_second]",
        ),
    ),
    Fault(
        "move: a source in doubt stays aside",
        "datamanager/engine/single/source_removal.py",
        "        session.rename(aside, path, overwrite=False)\n    except PathExists as exc:\n",
        "        pass\n    except PathExists as exc:\n",
        (
            "tests/integration/test_source_removal.py::"
            "test_remove_source_keeps_what_was_written_since[local-sha256-written_within_the_second]",
        ),
    ),
    Fault(
        "delete: a file that is not the object's is removed",
        "datamanager/engine/single/source_removal.py",
        "            known.require(end.place, now.size, stored_sha256(session, bytes_at, progress))\n",
        "",
        (
            "tests/integration/test_source_removal.py::"
            "test_remove_file_keeps_a_file_that_is_not_the_objects[local-written_within_the_second]",
        ),
    ),
    Fault(
        "batch: what nobody foresaw for one item ends the batch",
        "flows/batch/chunk.py",
        "        except Exception as error:  # noqa: BLE001 - whatever it is: no item ends the batch\n",
        "        except ZeroDivisionError as error:\n",
        ("tests/integration/test_odd_numbers.py::test_batch_does_what_it_can_whatever_one_item_raises[sqlite-False]",),
    ),
    Fault(
        "probe: overwriting is not guarded",
        "datamanager/engine/single/probe.py",
        "    return None if overwrite else DestinationExists(",
        "    return None if True else DestinationExists(",
        ("tests/integration/test_engine.py::test_nothing_is_overwritten_unless_asked[local]",),
    ),
    Fault(
        "probe: source and destination that are one inode are not seen",
        "datamanager/engine/single/same_file.py",
        "        return stat.identity == there.identity\n    return one_machine",
        "        return False\n    return one_machine",
        (f"{ONE_FILE}::test_a_transfer_refuses_its_source_under_the_second_name[mount-sqlite-move]",),
    ),
    Fault(
        "probe: directories of a machine that tells no inodes are not compared",
        "datamanager/engine/single/same_file.py",
        "                    keys[session, paths[index]] = found.data\n",
        "                    pass\n",
        (f"{ONE_FILE}::test_a_batch_refuses_sources_under_their_second_names[aliased-sqlite]",),
    ),
    Fault(
        "probe: the free space is not compared",
        "datamanager/engine/single/probe.py",
        "if free is not None and size is not None and size - there > free:",
        "if False:",
        ("tests/integration/test_engine.py::test_no_space_is_said_before_a_byte_moves[local]",),
    ),
    Fault(
        "paths: a link may lead out of the base directory",
        "datamanager/engine/path_confinement.py",
        "                inside = _is_within(machine, base, resolved.path)\n",
        "                inside = True\n",
        ("tests/integration/test_engine.py::test_links_that_lead_out_are_refused[local-out/secret]",),
    ),
    Fault(
        "paths: a directory that became a link is walked through",
        "datamanager/transports/local/beneath.py",
        "_WALKED | os.O_NOFOLLOW, path)",
        "_WALKED, path)",
        (
            "tests/security/test_exchanged_directories.py::test_each_verb_notices_an_exchange_after_the_check[local-read]",
        ),
    ),
    Fault(
        "paths: nobody looks where a file was removed",
        "datamanager/transports/sftp/looks.py",
        "    if posixpath.normpath(real) != posixpath.normpath(directory):\n",
        "    if False:\n",
        (
            "tests/security/test_exchanged_directories.py::test_each_verb_notices_an_exchange_after_the_check[sftp-remove]",
        ),
    ),
    Fault(
        "paths: a place may contain '..'",
        "datamanager/domain/location.py",
        'if ".." in parts:',
        "if False:",
        ("tests/unit/test_location.py",),
    ),
    Fault(
        "restart: the partial file of another version of the source is resumed",
        "datamanager/engine/attempt.py",
        "        return (self.size, self.mtime) == (source.size, source.mtime)\n",
        "        return True\n",
        (
            "tests/integration/test_restart.py::"
            "test_resume_refuses_a_source_that_changed_before_the_block_that_is_compared",
        ),
    ),
    Fault(
        "control: a bandwidth limit is not applied",
        "datamanager/engine/control.py",
        "            self.throttle.take(count, self.check)\n",
        "            pass\n",
        ("tests/unit/test_throttle.py::test_a_control_counts_then_waits_and_can_be_stopped_meanwhile",),
    ),
    Fault(
        "control: a cancel stops what is past its commit point",
        "datamanager/engine/control.py",
        "self._stop or (None if self._shielded or self._shielded_parts else self._user_stop)",
        "self._stop or self._user_stop",
        ("tests/unit/test_stopping.py::test_control_delays_stop_past_commit_point",),
    ),
    Fault(
        "control: a cancel waits for other chunks too",
        "datamanager/engine/control.py",
        "self._stop or (None if shielded or self._shielded else self._user_stop)",
        "self._stop or (None if shielded or self._shielded_parts else self._user_stop)",
        ("tests/integration/test_overlapping.py::test_the_control_of_a_part",),
    ),
    Fault(
        "program for many files: a link is followed",
        "datamanager/transports/remote/scripts/small_files.py",
        "os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC\n",
        "os.O_DIRECTORY | os.O_CLOEXEC\n",
        (
            "tests/contract/test_many_by_program.py"
            "::test_a_directory_that_was_exchanged_for_a_link_is_not_entered[openssh]",
        ),
    ),
    Fault(
        "program for many files: a name that is taken is replaced",
        "datamanager/transports/remote/scripts/small_files.py",
        '        if order["overwrite"]:\n',
        "        if True:\n",
        ("tests/contract/test_many_by_program.py::test_a_name_is_never_taken_by_a_race[openssh]",),
    ),
    Fault(
        "program for many files: directories are made where links lead out",
        "datamanager/transports/remote/scripts/small_files.py",
        '        if real != base and not real.startswith(base.rstrip(b"/") + b"/"):\n',
        "        if False:\n",
        (
            "tests/contract/test_many_by_program.py"
            "::test_a_survey_makes_nothing_beyond_the_base_directory[openssh-True]",
        ),
    ),
    Fault(
        "bulk: a cancel leaves partial files behind",
        "datamanager/engine/bulk/bulk_staging.py",
        "            chunk.remove_parts(list(chunk.made.values()))\n",
        "            pass\n",
        ("tests/integration/test_bulk.py::test_a_cancel_leaves_nothing[sha256-local]",),
    ),
    Fault(
        "bulk: hashes of small files are not compared",
        "datamanager/engine/bulk/bulk_staging.py",
        "elif far != task.sha256:",
        "elif False:",
        ("tests/integration/test_bulk.py::test_damage_to_what_was_stored_is_caught[sha256-local-flip-2]",),
    ),
    Fault(
        "bulk: a missing file fails the whole chunk",
        "datamanager/engine/bulk/bulk_probe.py",
        '            chunk.fail(task.number, SourceMissing(f"{task.item.source}: no such file"))\n',
        '            raise SourceMissing(f"{task.item.source}: no such file")\n',
        ("tests/integration/test_bulk.py::test_each_item_fails_alone[sha256-local]",),
    ),
    Fault(
        "bulk: a file that disappears before it is read fails the whole chunk",
        "datamanager/engine/bulk/bulk_staging.py",
        '                chunk.fail(task.number, SourceMissing(f"{task.item.source}: no such file"))\n',
        '                raise SourceMissing(f"{task.item.source}: no such file")\n',
        ("tests/integration/test_bulk.py::test_a_source_that_changes_is_caught[sha256-local]",),
    ),
    Fault(
        "bundle: the header of a member is not compared",
        "datamanager/engine/bundles/stored_bundle.py",
        "if found != header_of(member):",
        "if False:",
        ("tests/integration/test_bundles.py::test_the_catalogue_must_name_what_is_there",),
    ),
    Fault(
        "bundle: the hash of a small member is not compared",
        "datamanager/engine/bundles/recall.py",
        "if sha256(memoryview(data)[head:]).hexdigest() != member.sha256:",
        "if False:",
        ("tests/integration/test_bundles.py::test_one_flipped_bit_among_small_members",),
    ),
    Fault(
        "extract: a hidden file is written into a base directory",
        "datamanager/engine/extracting/archive_member.py",
        'elif parts[0].startswith(".") and _parts(directory) in ([], _parts(machine.base_dir)):',
        "elif False:",
        (
            "tests/integration/test_extracting.py::"
            "test_no_hidden_file_gets_into_a_base_directory[tar-.ssh/authorized_keys]",
        ),
    ),
    Fault(
        "extract: a link in an archive is accepted",
        "datamanager/engine/extracting/archive_listing.py",
        "if not info.isreg() or info.issparse():",
        "if info.issparse():",
        (
            "tests/integration/test_extracting.py::test_links_and_devices_are_no_files[2]",
            "tests/integration/test_archive_programs.py::test_links_and_devices_are_left_out_and_told[tar gnu]",
        ),
    ),
    Fault(
        "extract: the limit of an archive's bytes is not applied",
        "datamanager/engine/extracting/archive_member.py",
        "if total > limit:",
        "if False:",
        ("tests/integration/test_extracting.py::test_what_is_too_much",),
    ),
    Fault(
        "extract: a damaged member of a zip file is accepted",
        "datamanager/engine/extracting/member_staging.py",
        "if len(data) != member.size or (member.crc is not None and zlib.crc32(data) != member.crc):",
        "if len(data) != member.size:",
        ("tests/integration/test_extracting.py::test_no_damage_gets_past[zip]",),
    ),
    Fault(
        "storage: an existing file is written into",
        "datamanager/transports/local/files.py",
        "os.O_CREAT | os.O_EXCL",
        "os.O_CREAT",
        ("tests/contract/test_transport.py::test_create_is_exclusive[local-file]",),
    ),
    Fault(
        "storage: a rename replaces a file unasked",
        "datamanager/transports/local/files.py",
        "        if overwrite:\n",
        "        if True:\n",
        ("tests/contract/test_transport.py::test_rename_replaces_only_when_asked[local]",),
    ),
    Fault(
        "storage: setuid is carried over",
        "datamanager/transports/local/files.py",
        "os.chmod(file, mode & 0o777)",
        "os.chmod(file, mode)",
        ("tests/contract/test_transport.py::test_set_attributes_never_sets_setuid[local]",),
    ),
    Fault(
        "sftp: a server whose rename replaces is not found out",
        "datamanager/transports/sftp/server_behaviour.py",
        "        if sizes == (1, 2):\n            return Naming.RENAME",
        "        if True:\n            return Naming.RENAME",
        ("tests/integration/test_sftp_servers.py::test_a_file_that_appears_during_a_copy_is_left[links-alone]",),
    ),
    Fault(
        "batch: the time that a machine does not keep is taken for that of the file",
        "datamanager/engine/bulk/bulk_chunk.py",
        "return intent if task.kept is None else intent.stored_as(task.kept)",
        "return intent",
        (
            "tests/integration/test_sftp_servers.py::"
            "test_a_file_without_its_time_is_recognised_after_a_crash[together-refused]",
        ),
    ),
    Fault(
        "transport: more sessions than max_connections",
        "datamanager/transports/session_limiter.py",
        "self.in_use + count <= self.most",
        "True",
        ("tests/contract/test_transport_faults.py::test_sessions_are_bounded_and_waiters_wake[local]",),
    ),
    Fault(
        "transport: a stall is reported as a lost connection",
        "datamanager/transports/channel.py",
        "        if self.stalled:\n",
        "        if False:\n",
        ("tests/contract/test_transport_faults.py::test_a_server_that_stalls[openssh-nothing]",),
    ),
    Fault(
        "ssh: paramiko accepts any key of a known host",
        "datamanager/transports/ssh/hostkeys.py",
        "        if any(line.key == blob for line in plain):\n",
        "        if plain:\n",
        ("tests/contract/test_host_keys.py::test_every_other_key_is_refused[paramiko-changed]",),
    ),
    Fault(
        "ssh: OpenSSH does not check the host key",
        "datamanager/transports/ssh/openssh_client.py",
        '"StrictHostKeyChecking": "yes"',
        '"StrictHostKeyChecking": "no"',
        ("tests/contract/test_host_keys.py::test_every_other_key_is_refused[openssh-nothing]",),
    ),
    Fault(
        "ssh: a login shell sees what shells differ in",
        "datamanager/transports/login_shell.py",
        '"_./=+-"',
        '"_./=+-!"',
        ("tests/unit/test_shell.py::test_a_command_line_shows_no_word[words1]",),
    ),
    Fault(
        "ssh: words of a command are not quoted",
        "datamanager/transports/login_shell.py",
        "shlex.join(argv)",
        '" ".join(argv)',
        ("tests/contract/test_transport_programs.py::test_a_word_is_only_a_word[openssh-$(id)]",),
    ),
)
