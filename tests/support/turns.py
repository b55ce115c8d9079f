"""How often one waits for a machine: a recorder at the channels of a real storage.

A turn is a wait for an answer after something was sent: over a long path each one takes a round trip. Answers that are
read one after the other, with nothing sent in between, are one turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datamanager.transports.channel import Channel, RemoteProgram
from datamanager.transports.port import Storage
from datamanager.transports.sftp.pool import SftpStorage


class Turns:
    """Counts the turns of every session of a storage that is made from now on, and of their programs."""

    def __init__(self, storage: Storage) -> None:
        assert isinstance(storage, SftpStorage)
        self.count = 0
        connector: Any = storage._connector
        opening: Callable[[], Channel] = connector.open_channel

        def open_channel() -> Channel:
            return self._recorded_channel(opening())

        connector.open_channel = open_channel

    def _recorded_channel(self, channel: Channel) -> Channel:
        recorded: Any = channel
        running: Callable[..., RemoteProgram] = channel.run
        self._record(recorded, sends=["send_some"], waits=["receive_into"])

        def run(*args: Any, **kwargs: Any) -> RemoteProgram:
            program = running(*args, **kwargs)
            self._record(program, sends=["_send"], waits=["_receive"], begun=True)
            return program

        recorded.run = run
        return channel

    def _record(self, stream: Any, *, sends: list[str], waits: list[str], begun: bool = False) -> None:
        asked = begun  # starting a program asks for its first word

        def sending(act: Callable[..., Any]) -> Callable[..., Any]:
            def send(*args: Any) -> Any:
                nonlocal asked
                asked = True
                return act(*args)

            return send

        def waiting(act: Callable[..., Any]) -> Callable[..., Any]:
            def wait(what: Any) -> Any:
                nonlocal asked
                if asked and what != 0.0:  # a look whether something has come is no wait
                    asked, self.count = False, self.count + 1
                return act(what)

            return wait

        for name in sends:
            setattr(stream, name, sending(getattr(stream, name)))
        for name in waits:
            setattr(stream, name, waiting(getattr(stream, name)))
