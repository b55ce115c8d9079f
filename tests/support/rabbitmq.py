"""A private RabbitMQ node on loopback, with an Erlang port mapper of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote
from uuid import uuid4

from tests.support.ports import free_port
from tests.support.process import Process, clean_environment
from tests.support.programs import find_program, listens

START_TIMEOUT = 300.0
"""Seconds until a node that does not listen fails the test."""
AT_ONCE = 10
"""Virtual hosts that are made by one call of rabbitmqctl: the call takes longer than they do."""
DEBIAN = Path("/usr/lib/rabbitmq/bin")
"""Debian's own scripts change to another user and another folder; these are the ones behind them."""


class RabbitMq:
    """One RabbitMQ node: listens on 127.0.0.1 only, user guest, its data goes with it.

    It can be stopped or killed and started again; it keeps its ports, queues and durable messages until `close`.
    """

    def __init__(self, log_directory: Path, *, further: str = "") -> None:
        """`further` are lines of its configuration."""
        self._server = find_program("rabbitmq-server", also=[DEBIAN])
        self._ctl = find_program("rabbitmqctl", also=[DEBIAN])
        self.port, self._dist_port, epmd_port = free_port(), free_port(), free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="dm-rabbitmq-"))
        config = self.directory / "rabbitmq.conf"
        config.write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "vm_memory_high_watermark.absolute = 1GiB\n"
            "disk_free_limit.absolute = 50MB\n"
            "log.console = true\nlog.file = false\n" + further
        )
        (self.directory / "enabled_plugins").write_text("[].\n")
        self.env = clean_environment(
            HOME=str(self.directory),  # the Erlang cookie
            ERL_EPMD_PORT=str(epmd_port),
            ERL_EPMD_ADDRESS="127.0.0.1",
            RUNNING_UNDER_SYSTEMD="true",  # the script becomes the node instead of waiting for it
            RABBITMQ_NODENAME=f"dm{uuid4().hex[:12]}@localhost",
            RABBITMQ_DIST_PORT=str(self._dist_port),
            RABBITMQ_CONF_ENV_FILE="/dev/null",
            RABBITMQ_CONFIG_FILE=str(config),
            RABBITMQ_ADVANCED_CONFIG_FILE=str(self.directory / "advanced.config"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(self.directory / "enabled_plugins"),
            RABBITMQ_MNESIA_BASE=str(self.directory / "mnesia"),
            RABBITMQ_LOG_BASE=str(self.directory / "log"),
            RABBITMQ_PID_FILE=str(self.directory / "pid"),
            RABBITMQ_GENERATED_CONFIG_DIR=str(self.directory / "generated"),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}",
        )
        self._fresh: list[str] = []
        self._dropped: list[str] = []
        self._epmd_port = epmd_port
        self._epmd = Process(
            [find_program("epmd"), "-port", str(epmd_port), "-address", "127.0.0.1"],
            log=log_directory / "epmd.log",
            env=self.env,
        )
        self.process = Process([self._server], log=log_directory / "rabbitmq.log", env=self.env, cwd=self.directory)

    def start(self) -> None:
        """Start the node; return when it accepts AMQP connections."""
        if not self._epmd.running:
            self._epmd.start()
            self._epmd.wait_until(lambda: listens(self._epmd_port), START_TIMEOUT)
        self.process.start()
        # the listener opens as the last step of the boot
        self.process.wait_until(lambda: listens(self.port), START_TIMEOUT)

    def stop(self) -> None:
        """End the node in an orderly way; clients see their connections closed. Idempotent."""
        self.process.stop()

    def kill(self) -> None:
        """Kill the node at once."""
        self.process.kill()

    def close(self) -> None:
        """Stop the node and its port mapper and remove the data."""
        self.stop()
        self._epmd.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def url(self, vhost: str = "/") -> str:
        """Return the AMQP URL of a virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{quote(vhost, safe='')}"

    def fresh_vhost(self) -> str:
        """Return the AMQP URL of an empty virtual host; each tenth call takes a second or two."""
        if not self._fresh:
            self._fresh = [f"test-{uuid4().hex}" for _ in range(AT_ONCE)]
            self.ctl("eval", ", ".join([*map(_removal, self._dropped), *map(_making, self._fresh)]) + ".")
            self._dropped.clear()
        return self.url(self._fresh.pop())

    def drop_vhost(self, url: str) -> None:
        """Give up the virtual host of a URL that `fresh_vhost` returned; it goes when the next ones are made."""
        self._dropped.append(url.rpartition("/")[2])

    def stop_app(self) -> None:
        """Stop the broker inside the node (quicker than `stop`): listeners close, connections are ended."""
        self.ctl("stop_app")

    def start_app(self) -> None:
        """Start the broker inside the node again; return when it accepts connections."""
        self.ctl("start_app")
        self.process.wait_until(lambda: listens(self.port), START_TIMEOUT)

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl and return what it prints. Raises: CalledProcessError."""
        command = [self._ctl, "-q", *arguments]
        done = subprocess.run(
            command, env=self.env, cwd=self.directory, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        return done.stdout.decode()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _making(name: str) -> str:
    """Return the Erlang expressions that make a virtual host, open to the tests' user."""
    return (
        f'ok = rabbit_vhost:add(<<"{name}">>, <<"guest">>), ok = rabbit_auth_backend_internal:set_permissions('
        f'<<"guest">>, <<"{name}">>, <<".*">>, <<".*">>, <<".*">>, <<"guest">>)'
    )


def _removal(name: str) -> str:
    """Return the Erlang expression that removes a virtual host."""
    return f'rabbit_vhost:delete(<<"{name}">>, <<"guest">>)'


def given_amqp() -> str | None:
    """Return DM_TEST_AMQP: a virtual host that the tests may fill and empty as they like."""
    return os.environ.get("DM_TEST_AMQP") or None
