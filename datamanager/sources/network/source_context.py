"""What sources are opened with: the operator's side of a download."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from datamanager.settings import Settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.network.host_limits import HostLimits
from datamanager.sources.terms.source_options import CommonOptions
from datamanager.transports.port import RunningCurl

RunCurl = Callable[[bytes, bytes], AbstractContextManager[RunningCurl]]
"""Starts a curl on the machine, from its configuration and from the authorities (PEM) to trust, if not its own ones."""
READ_TIMEOUT = 60.0
"""Seconds without data after which a connection fails, unless `timeout` says otherwise."""


@dataclass(frozen=True, slots=True)
class SourceContext:
    """Where downloads may go, and their limits.

    `max_size` is bytes, timeouts are seconds, `ca_file` holds certificate authorities to trust besides the public ones
    and those of the options; with `insecure` the operator permits `verify_tls: false`. `run` starts a curl on the
    machine that the bytes are for; without it `fetch: remote` is the same as `mover`. `hosts` is shared by all
    downloads of a mover.
    """

    guard: EgressGuard
    max_size: int
    connect_timeout: float = 10.0
    read_timeout: float = READ_TIMEOUT
    ca_file: Path | None = None
    insecure: bool = False
    run: RunCurl | None = None
    hosts: HostLimits = field(default_factory=HostLimits)

    @classmethod
    def of(
        cls, guard: EgressGuard, settings: Settings, run: RunCurl | None = None, hosts: HostLimits | None = None
    ) -> SourceContext:
        """Return the context that the operator's settings give."""
        known = HostLimits() if hosts is None else hosts
        return cls(guard, settings.max_download, insecure=settings.download_insecure, run=run, hosts=known)

    def limited(self, options: CommonOptions) -> SourceContext:
        """Return the same with the limits of the options where they are stricter."""
        most, timeout = options.max_size, options.timeout
        return replace(
            self,
            max_size=self.max_size if most is None else min(self.max_size, most),
            connect_timeout=self.connect_timeout if timeout is None else min(self.connect_timeout, timeout),
            read_timeout=self.read_timeout if timeout is None else timeout,
        )
