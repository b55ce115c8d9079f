"""The servers that the other tests rely on do work: a broken one should fail here and not somewhere in a transfer."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import aio_pika
import pytest
import requests
import sqlalchemy
from sqlalchemy import text

from tests.support.prefect import answers
from tests.support.process import Process, session_members
from tests.support.programs import find_program, listens
from tests.support.rabbitmq import RabbitMq
from tests.support.sshd import PrivateSshd
from tests.support.web import OddServer, Web, chunked, in_turn, redirect, short_body, stall, status


@pytest.mark.dialect
def test_a_catalogue_database_is_fresh_and_takes_a_table(catalogue_url: str) -> None:
    engine = sqlalchemy.create_engine(catalogue_url)
    assert sqlalchemy.inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (n INTEGER)"))
        connection.execute(text("INSERT INTO t VALUES (42)"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT n FROM t")).scalar_one() == 42
    engine.dispose()


async def _publish_and_consume(url: str) -> bytes:
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        queue = await channel.declare_queue("q", durable=True, arguments={"x-queue-type": "quorum"})
        await channel.default_exchange.publish(aio_pika.Message(b"hello"), "q", mandatory=True)
        message = await queue.get(timeout=60)
        await message.ack()
        await queue.delete(if_unused=False, if_empty=False)
        return message.body


def test_rabbitmq_confirms_and_delivers_through_a_quorum_queue(amqp_url: str) -> None:
    assert asyncio.run(_publish_and_consume(amqp_url)) == b"hello"


@pytest.mark.slow
def test_rabbitmq_keeps_its_queues_over_a_kill(rabbitmq: RabbitMq) -> None:
    url = rabbitmq.fresh_vhost()
    rabbitmq.kill()
    assert not listens(rabbitmq.port)
    rabbitmq.start()
    assert url.rpartition("/")[2] in rabbitmq.ctl("list_vhosts")
    rabbitmq.drop_vhost(url)


def test_prefect_is_healthy(prefect_api_url: str) -> None:
    assert answers(f"{prefect_api_url}/health")


def test_nginx_serves_over_http_and_https(web: Web) -> None:
    url = web.put("folder/a file", b"content")
    assert requests.get(url, timeout=60).content == b"content"
    secure = requests.get(url.replace(web.url, web.tls_url), timeout=60, verify=str(web.certificate))
    assert secure.content == b"content"
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(web.tls_url, timeout=60)


def test_the_odd_server_is_as_odd_as_asked(odd_server: OddServer) -> None:
    good = odd_server.on("/good", in_turn(status(503, Retry_After=1), status(200, b"good")))
    assert requests.get(good, timeout=60).status_code == 503
    assert requests.get(odd_server.on("/away", redirect(good)), timeout=60).content == b"good"
    assert requests.get(odd_server.on("/chunked", chunked(b"a", b"bc")), timeout=60).content == b"abc"
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(odd_server.on("/cut", chunked(b"a", complete=False)), timeout=60)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(odd_server.on("/short", short_body(b"abc", declared=10)), timeout=60)
    with pytest.raises(requests.exceptions.ConnectionError, match="timed out"):
        requests.get(odd_server.on("/stall", stall(b"abc", declared=10)), timeout=0.3)
    assert [path for path, _ in odd_server.requests][:3] == ["/good", "/away", "/good"]


def test_both_ssh_servers_let_their_own_key_in_and_no_other(sshd_pair: tuple[PrivateSshd, PrivateSshd]) -> None:
    first, second = sshd_pair
    for server, key, expected in ((first, first, 0), (second, second, 0), (first, second, 255)):
        options = ["-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]
        command = [find_program("ssh"), "-F", "none", *options, "-i", str(key.client_key), "-p", str(server.port)]
        done = subprocess.run([*command, server.host, "true"], stdin=subprocess.DEVNULL, capture_output=True)
        assert done.returncode == expected, done.stderr


def test_what_a_killed_test_run_had_started_ends_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = (
        "import pathlib, sys, time\n"
        "from tests.support.process import Process\n"
        # a shell with a child: the child must go too
        "process = Process(['sh', '-c', 'sleep 600 & sleep 600'], log=pathlib.Path(sys.argv[1]).with_name('log'))\n"
        "process.start()\n"
        "pathlib.Path(sys.argv[1]).write_text(str(process.pid))\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(pid_file)]
    with Process(command, log=tmp_path / "run.log", cwd=Path(__file__).parents[2]) as run:
        run.wait_until(lambda: pid_file.exists() and pid_file.read_text() != "", 60)
        session = int(pid_file.read_text())
        assert session_members(session)
        os.kill(run.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while session_members(session) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert session_members(session) == []
