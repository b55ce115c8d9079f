"""One large file between two machines, and on one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from benchmarks import programs
from benchmarks.figures.files import one_file
from benchmarks.figures.scale import Scale
from benchmarks.libraries import StockParamiko
from benchmarks.ours import Ours
from benchmarks.race import Claim, Contender, Race
from benchmarks.servers import Stage
from datamanager.domain.states import Route
from datamanager.machines import VerifyPolicy

OURS = "ours"


@contextmanager
def relay(stage: Stage, scale: Scale) -> Iterator[Race]:
    """Hand a file of one machine on to another, through this host.

    paramiko leaves Nagle's algorithm on: a relay with it goes in some runs at its best and in others at a tenth of that
    (delayed acknowledgements). So it runs a second time without, and the faster of both counts.
    """
    stock, steady = "paramiko, open → putfo", "the same, TCP_NODELAY"
    machines = (stage.machine, stage.second_machine)
    with (
        one_file(stage.far / "file", stage.other / "file", scale.size) as file,
        Ours(list(machines), stage.control) as engine,
        ExitStack() as stack,
    ):

        def by_paramiko(name: str, no_delay: bool) -> Contender:
            first, second = (stack.enter_context(StockParamiko(one, no_delay=no_delay)) for one in machines)

            def connect() -> None:
                first.connect()
                second.connect()

            return Contender(name, lambda: first.relay(file.source, second, file.target), connect)

        def ours() -> None:
            engine.copy((machines[0], "file"), (machines[1], "file"), VerifyPolicy.SIZE, Route.RELAY)

        contenders = [
            Contender(OURS, ours, engine.connect),
            by_paramiko(stock, False),
            by_paramiko(steady, True),
        ]
        claims = [Claim("relay between two machines", OURS, stock, 4.0, steady)]
        yield Race("relay", file.megabytes, "MB", contenders, claims, file.reset, file.check, baseline=stock)


@contextmanager
def direct(stage: Stage, scale: Scale) -> Iterator[Race]:
    """Let one machine push a file to another."""
    by_hand, fast = "scp on the source, logged in already", "the same, aes128-gcm"
    first, second = stage.pushing
    with (
        one_file(stage.far / "file", stage.other / "file", scale.size) as file,
        Ours([first, second], stage.control) as engine,
        programs.logged_in(first, stage.control) as login,
    ):

        def scp(cipher: str | None) -> Callable[[], None]:
            words = programs.scp_words(second, file.source, file.target, cipher)
            return lambda: login.run(*words)

        def ours() -> None:
            engine.push((first, "file"), (second, "file"), VerifyPolicy.SIZE)

        contenders = [
            Contender(by_hand, scp(None)),
            Contender(OURS, ours, engine.connect),
            Contender(fast, scp(programs.GCM)),
        ]
        claims = [Claim("direct between two machines", OURS, by_hand, 1.0)]
        yield Race("direct", file.megabytes, "MB", contenders, claims, file.reset, file.check, baseline=by_hand)


@contextmanager
def copy_within(stage: Stage, scale: Scale) -> Iterator[Race]:
    """Copy a file on one machine."""
    by_hand, anew = "cp, logged in already", "ssh machine cp"
    with (
        one_file(stage.far / "file", stage.far / "copy", scale.size) as file,
        Ours([stage.machine], stage.control) as engine,
        programs.logged_in(stage.machine, stage.control) as login,
    ):
        words = programs.cp_words(file.source, file.target)

        def ours() -> None:
            engine.copy((stage.machine, "file"), (stage.machine, "copy"), VerifyPolicy.SIZE, Route.WITHIN)

        contenders = [
            Contender(by_hand, lambda: login.run(*words)),
            Contender(OURS, ours, engine.connect),
            Contender(anew, lambda: programs.ssh(stage.machine, *words)),
        ]
        claims = [Claim("copy on one machine", OURS, by_hand, 0.9)]
        yield Race("copy", file.megabytes, "MB", contenders, claims, file.reset, file.check, baseline=by_hand)
