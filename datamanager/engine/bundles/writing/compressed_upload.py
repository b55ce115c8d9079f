"""A bundle in the making into its partial file, where it is compressed on the way: in order, over one connection."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack

from datamanager.domain.bundle_model import Frame
from datamanager.domain.states import Phase
from datamanager.engine.attempt import Attempt, Found, Moved
from datamanager.engine.bundles.format.frames import compressed, cuts, seek_table
from datamanager.engine.bundles.writing.bundle_content import Making
from datamanager.engine.control import Control
from datamanager.engine.endpoints import acquire_sessions
from datamanager.engine.single.transfer import FOLLOWED_FROM, remove_part
from datamanager.engine.single.verify import followed, following
from datamanager.machines import VerifyPolicy


def send_compressed(job: Attempt, found: Found, making: Making, control: Control) -> tuple[Moved, tuple[Frame, ...]]:
    """Write frames and their table; return what was written, and the frames. Progress counts uncompressed bytes.

    Raises: what the members' reading and the transports raise.
    """
    layout = making.layout
    control.enter(Phase.TRANSFER, layout.size)
    with acquire_sessions(job) as (source, target), ExitStack() as stack:
        remove_part(target, found)
        reader = stack.enter_context(making.open(source))
        writer = stack.enter_context(target.create(found.part))
        hashed = job.verify is VerifyPolicy.SHA256 and layout.size >= FOLLOWED_FROM
        follower = stack.enter_context(following(target, found.part)) if hashed else None
        digest, stored = making.digest(), hashlib.sha256()
        frames, position = list[Frame](), 0

        def write(data: bytes) -> None:
            nonlocal position
            stored.update(data)
            writer.write(position, data)
            position += len(data)
            unsettled = writer.unsettled
            if follower is not None:
                follower.advance(position if unsettled is None else unsettled)

        def read() -> Iterator[memoryview]:
            for block in reader.blocks():
                digest.update(block)
                control.advance(len(block))
                yield block

        for frame, data in compressed(read(), cuts(layout)):
            frames.append(frame)
            write(data)
        write(seek_table(frames))
        writer.flush()
        if follower is not None:
            follower.advance(position)
        far = followed(follower, control.watch)
    return Moved(position, stored.hexdigest(), far), tuple(frames)
