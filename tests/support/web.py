"""Web servers on loopback: a real nginx over http and https, and a server that misbehaves on request."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.programs import find_program, listens

USER, PASSWORD = "reader", "s3cret-Passw0rd"
"""Who may read what is below `private/`."""
START_TIMEOUT = 60.0
"""Seconds until a server that does not listen fails the test."""


class Web:
    """An nginx that serves `root` over http and https; `certificate` is what a client must trust for the latter."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.root.mkdir(parents=True, exist_ok=True)
        self.certificate = directory / "certificate.pem"
        self.access_log = directory / "access.log"
        self.port, self.tls_port = free_port(), free_port()
        key = directory / "key.pem"
        (directory / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
        make_certificate(self.certificate, key)
        folders = "\n".join(
            f'    {kind}_temp_path "{directory / kind}";'
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = directory / "nginx.conf"
        config.write_text(f"""\
{"user root;" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 1;
pid "{directory / "nginx.pid"}";
error_log stderr;
events {{ worker_connections 512; }}
http {{
{folders}
    access_log "{self.access_log}";
    default_type application/octet-stream;
    sendfile on;
    server {{
        listen 127.0.0.1:{self.port};
        listen 127.0.0.1:{self.tls_port} ssl;
        ssl_certificate "{self.certificate}";
        ssl_certificate_key "{key}";
        root "{self.root}";
        location ^~ /slow/ {{ limit_rate 8m; }}
        location ^~ /private/ {{
            auth_basic "private";
            auth_basic_user_file "{self.directory / "users"}";
        }}
    }}
}}
""")
        command = [find_program("nginx"), "-e", "stderr", "-p", str(directory), "-c", str(config)]
        self.process = Process(command, log=directory / "nginx.log")

    @property
    def url(self) -> str:
        """The http address, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        """The https address, without a slash at its end."""
        return f"https://127.0.0.1:{self.tls_port}"

    def put(self, name: str, content: bytes) -> str:
        """Store a file below `root` and return its http address."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"{self.url}/{name}"

    def start(self) -> None:
        """Start the server; return when it listens."""
        self.process.start()
        self.process.wait_until(lambda: listens(self.port) and listens(self.tls_port), START_TIMEOUT)

    def stop(self) -> None:
        """End the server. Idempotent."""
        self.process.stop()

    def kill(self) -> None:
        """Kill the server at once; downloads under way break off."""
        self.process.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a self-signed certificate for localhost and 127.0.0.1, valid for a day, and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


Answer = Callable[["OddHandler"], None]
"""What a path of an OddServer does with a GET or a POST."""


class OddHandler(BaseHTTPRequestHandler):
    """One request to an OddServer."""

    protocol_version = "HTTP/1.1"
    server: OddServer

    def do_GET(self) -> None:
        """Note the request and let the path's answer do as it likes."""
        path = self.path.partition("?")[0]
        self.server.requests.append((path, dict(self.headers)))
        answer = self.server.answers.get(path, status(404))
        with contextlib.suppress(ConnectionError):
            answer(self)

    do_POST = do_GET  # noqa: N815  # the base class looks for this name

    def begin(self, code: int, **headers: object) -> None:
        """Send the status line and headers; an underscore in a name stands for a dash."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it so
        """Keep the terminal quiet."""


class OddServer(ThreadingHTTPServer):
    """A server with a thread per request that does what a decent one never does; see the answers below."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), OddHandler)
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Path and headers of each request, oldest first."""
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """The http address, without a slash at its end."""
        return f"http://127.0.0.1:{self.server_port}"

    def on(self, path: str, answer: Answer) -> str:
        """Let `answer` answer `path`; return the full address."""
        self.answers[path] = answer
        return f"{self.url}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


def status(code: int, body: bytes = b"", **headers: object) -> Answer:
    """Answer with a status and a body of the right length."""

    def answer(request: OddHandler) -> None:
        request.begin(code, **{"Content_Length": len(body), **headers})
        request.wfile.write(body)

    return answer


def redirect(to: str, code: int = 302) -> Answer:
    """Answer with a redirect."""
    return status(code, Location=to)


def short_body(body: bytes, declared: int) -> Answer:
    """Declare `declared` bytes, send only `body`, and close the connection."""

    def answer(request: OddHandler) -> None:
        request.begin(200, Content_Length=declared, Connection="close")
        request.wfile.write(body)

    return answer


def endless(block: bytes = b"\0" * 65536) -> Answer:
    """Declare no length and send for ever, until the client goes away or the server ends."""

    def answer(request: OddHandler) -> None:
        request.begin(200, Connection="close")
        while not request.server.ended.is_set():
            request.wfile.write(block)

    return answer


def chunked(*chunks: bytes, complete: bool = True) -> Answer:
    """Send in chunks without a length; incomplete: the last, empty chunk never comes and the connection closes."""

    def answer(request: OddHandler) -> None:
        request.begin(200, Transfer_Encoding="chunked", Connection="close")
        for chunk in chunks:
            request.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        if complete:
            request.wfile.write(b"0\r\n\r\n")

    return answer


def stall(body: bytes, declared: int) -> Answer:
    """Declare `declared` bytes, send `body`, and then send nothing but keep the connection until the server ends."""

    def answer(request: OddHandler) -> None:
        request.begin(200, Content_Length=declared)
        request.wfile.write(body)
        request.server.ended.wait()
        request.close_connection = True

    return answer


def silent() -> Answer:
    """Accept the request and never answer it."""

    def answer(request: OddHandler) -> None:
        request.server.ended.wait()
        request.close_connection = True

    return answer


def in_turn(*answers: Answer) -> Answer:
    """Answer the first request with the first answer and so on; the last one stays."""
    left = list(answers)
    lock = threading.Lock()

    def answer(request: OddHandler) -> None:
        with lock:
            chosen = left.pop(0) if len(left) > 1 else left[0]
        chosen(request)

    return answer
