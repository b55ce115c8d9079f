"""The download guard: a table of URLs that must not get anywhere, and what the operator can open."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence

import pytest

from datamanager.errors import SettingsError, TransportTimeout, UrlNotAllowed
from datamanager.sources.network import egress_guard
from datamanager.sources.network.egress_guard import EgressGuard, is_public
from datamanager.sources.source_port import Source
from datamanager.sources.terms.urls import Address
from tests.support.downloads import check_download, open_source

PUBLIC_V4 = "93.184.216.34"
PUBLIC_V6 = "2606:2800:220:1:248:1893:25c8:1946"

# Whatever somebody's parser or resolver would take for this host itself; {port} is where a canary listens.
LOOPBACK = [
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.0.0.2:{port}/",
    "http://127.255.255.254:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://127.0.0.1..:{port}/",
    "http://0:{port}/",
    "http://0.0.0.0:{port}/",
    "http://0x7f.1:{port}/",
    "http://0x7f.0x0.0x0.0x1:{port}/",
    "http://0x7f000001:{port}/",
    "http://0X7F000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://2130706433:{port}/",
    "http://2130706433.:{port}/",
    "http://4294967295127.0.0.1:{port}/",
    "http://017700000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0177.0000.0000.0001:{port}/",
    "http://127.0.0.01:{port}/",
    "http://127.0.0.0x1:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://127%2e0%2e0%2e1:{port}/",
    "http://127.0.0.1%00.example.org:{port}/",
    "http://127.0.0.1%20:{port}/",
    "http://１２７.０.０.１:{port}/",
    "http://127。0。0。1:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST:{port}/",
    "http://localhost.:{port}/",
    "http://ⓛocalhost:{port}/",
    "http://[::1]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[0000:0000:0000:0000:0000:0000:0000:0001]:{port}/",
    "http://[::]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[::7f00:1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::FFFF:7F00:0001]:{port}/",
    "http://[::ffff:0:127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:7f00:1::]:{port}/",
    "http://[2001::80ff:fffe]:{port}/",
    "http://[::1%25lo]:{port}/",
    "http://[::1%lo]:{port}/",
    "http://example.org@127.0.0.1:{port}/",
    "http://example.org:80@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@example.org/",
    "http://example.org\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.org/",
    "http://127.0.0.1:{port}#@example.org/",
    "http://example.org\r\n@127.0.0.1:{port}/",
    "http://127.0.0.1\t:{port}/",
    "http:127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}/",
]

ELSEWHERE = [
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/latest/meta-data/",
    "http://[fe80::a9fe:a9fe]/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://0xa9fea9fe/",
    "http://2852039166/",
    "http://100.100.100.200/latest/meta-data/",
    "http://192.0.0.192/opc/v2/",
    "http://168.63.129.16/machine?comp=goalstate",
    "http://10.0.0.1/",
    "http://10.255.255.255/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.0.1/",
    "http://100.64.0.1/",
    "http://100.127.255.254/",
    "http://198.18.0.1/",
    "http://203.0.113.7/",
    "http://224.0.0.1/",
    "http://239.255.255.250/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://0.1.2.3/",
    "http://[fc00::1]/",
    "http://[fdff:ffff::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[ff0e::1]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[100::1]/",
    "http://[4000::1]/",
    "http://[2002:a00:1::]/",
    "http://[64:ff9b::10.0.0.1]/",
    f"http://{PUBLIC_V4}:0/",
    f"http://{PUBLIC_V4}:23/",
    f"http://{PUBLIC_V4}:25/",
    f"http://{PUBLIC_V4}:6379/",
    f"http://{PUBLIC_V4}:8080/",
    f"http://{PUBLIC_V4}:65536/",
    f"http://{PUBLIC_V4}:-80/",
    f"http://{PUBLIC_V4}:80:80/",
    f"http://user:secret@{PUBLIC_V4}/",
    f"http://user@{PUBLIC_V4}/",
    "http://-dash.example/",
    "http://a..b/",
    "http://*.example/",
    "http://$(id).example/",
    "http://exa mple.org/",
    f"http://{'a' * 64}.example/",
    f"http://{PUBLIC_V4}/{'a' * 9000}",
    "http://",
    "http:///path",
    "http://[::1",
    "file:///etc/passwd",
    "file://127.0.0.1/etc/passwd",
    "FILE:///etc/passwd",
    "data:text/plain,hello",
    "",
    "/etc/passwd",
]


class Names:
    """A resolver that knows a few names, and counts what it is asked."""

    def __init__(self, **names: Sequence[str]) -> None:
        self.names = names
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.names[host]


def source_of(url: str, the_guard: EgressGuard, read_timeout: float = 5) -> Source:
    return open_source(url, "http", {}, the_guard, max_size=1000, connect_timeout=5, read_timeout=read_timeout)


def check(url: str, the_guard: EgressGuard) -> None:
    """Check only: a URL that should have been refused must not be fetched by a test, its host may be real."""
    check_download(url, "http", {}, the_guard)


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A listener on every loopback address; its port counts as open, so that only the address can be refused."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        listener.setblocking(False)
        monkeypatch.setattr(egress_guard, "PUBLIC_PORTS", egress_guard.PUBLIC_PORTS | {listener.getsockname()[1]})
        yield listener


def reached(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.attack(cwe=918, title="An address of the service's own host is written in every form that there is")
@pytest.mark.parametrize("form", LOOPBACK)
def test_no_form_of_loopback_is_reached(form: str, canary: socket.socket) -> None:
    url = form.format(port=canary.getsockname()[1])
    the_guard = EgressGuard(resolve=Names(localhost=["127.0.0.1"]))
    with pytest.raises(UrlNotAllowed):
        check(url, the_guard)
    with pytest.raises(UrlNotAllowed), source_of(url, the_guard).open():
        pytest.fail("the source refuses only when it is asked to check")
    assert not reached(canary)


def test_the_canary_sings_when_it_is_allowed(canary: socket.socket) -> None:
    url = f"http://127.0.0.1:{canary.getsockname()[1]}/"
    with pytest.raises(TransportTimeout), source_of(url, EgressGuard(["127.0.0.1"]), read_timeout=0.2).open():
        pass
    assert reached(canary)


@pytest.mark.parametrize("url", ELSEWHERE)
def test_refused(url: str) -> None:
    with pytest.raises(UrlNotAllowed):
        check(url, EgressGuard(resolve=Names()))


def test_the_tables_are_long_enough() -> None:
    assert len(LOOPBACK) + len(ELSEWHERE) >= 60
    assert len(set(LOOPBACK)) == len(LOOPBACK)
    assert len(set(ELSEWHERE)) == len(ELSEWHERE)


@pytest.mark.parametrize("form", [form for form in LOOPBACK if "localhost" not in form.lower()])
def test_no_numeric_form_is_given_to_the_resolver(form: str) -> None:
    names = Names()
    with pytest.raises(UrlNotAllowed):
        check(form.format(port=80), EgressGuard(resolve=names))
    assert names.asked == []


@pytest.mark.parametrize(
    "address",
    [PUBLIC_V4, PUBLIC_V6, "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.128.0.1", "64:ff9b::808:808", "::ffff:8.8.8.8"],
)
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    assert EgressGuard().check(address, 443)


@pytest.mark.parametrize("port", [21, 22, 80, 443, 990])
def test_ports_open_to_all(port: int) -> None:
    assert EgressGuard().check(PUBLIC_V4, port) == [ipaddress.ip_address(PUBLIC_V4)]


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        [PUBLIC_V4, "127.0.0.1"],
        [PUBLIC_V4, PUBLIC_V6, "10.0.0.1"],
        [PUBLIC_V6, "fe80::1%eth0"],
        [PUBLIC_V4, "::ffff:10.0.0.1"],
        [PUBLIC_V4, "64:ff9b::a00:1"],
        [PUBLIC_V4, "169.254.169.254"],
        [PUBLIC_V4, "not an address"],
        [],
    ],
)
def test_every_answer_must_be_public(answers: list[str]) -> None:
    with pytest.raises(UrlNotAllowed) as caught:
        EgressGuard(resolve=Names(**{"data.example": answers})).check("data.example", 80)
    assert "10.0.0.1" not in caught.value.detail  # what the inner network's names stand for is not told


def test_answers_are_given_in_order_once_each() -> None:
    names = Names(**{"data.example": [PUBLIC_V6, PUBLIC_V4, f"::ffff:{PUBLIC_V4}", PUBLIC_V6]})
    expected: list[Address] = [ipaddress.ip_address(PUBLIC_V6), ipaddress.ip_address(PUBLIC_V4)]
    assert EgressGuard(resolve=names).check("DATA.example.", 80) == expected
    assert names.asked == ["data.example"]


def test_a_resolver_that_is_away_may_be_asked_again() -> None:
    def away(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    for resolve, retryable in ((away, True), (Names(), False)):
        with pytest.raises(UrlNotAllowed) as caught:
            EgressGuard(resolve=resolve).check("nowhere.example", 80)
        assert caught.value.retryable is retryable


INNER = Names(
    **{
        "nas.example": ["10.1.2.3"],
        "both.example": ["10.1.2.3", "192.168.1.1"],
        "public.example": [PUBLIC_V4],
        "six.example": ["fd00::5"],
    }
)


@pytest.mark.parametrize(
    ("allow", "host", "port", "opens"),
    [
        ("10.1.2.3", "10.1.2.3", 80, True),
        ("10.1.2.3", "10.1.2.3", 8080, True),
        ("10.1.2.3", "nas.example", 8080, True),
        ("10.1.2.3", "10.1.2.4", 80, False),
        ("10.1.2.3", "both.example", 80, False),
        ("10.1.2.3", "::ffff:10.1.2.3", 80, True),
        ("10.1.2.3:8080", "10.1.2.3", 8080, True),
        ("10.1.2.3:8080", "10.1.2.3", 80, False),
        ("10.1.2.3:8080", "nas.example", 8080, True),
        ("10.0.0.0/8", "10.200.0.1", 9000, True),
        ("10.0.0.0/8", "11.0.0.1", 9000, False),
        ("10.0.0.0/8", "both.example", 80, False),
        ("10.0.0.0/8,192.168.0.0/16", "both.example", 80, True),
        ("10.0.0.0/8:8080", "10.9.9.9", 8080, True),
        ("10.0.0.0/8:8080", "10.9.9.9", 80, False),
        ("nas.example", "nas.example", 80, True),
        ("nas.example", "NAS.Example.", 9000, True),
        ("NAS.example.", "nas.example", 9000, True),
        ("nas.example", "10.1.2.3", 80, False),
        ("nas.example", "six.example", 80, False),
        ("nas.example:8080", "nas.example", 8080, True),
        ("nas.example:8080", "nas.example", 80, False),
        ("public.example:8080", "public.example", 8080, True),
        ("public.example:8080", "public.example", 443, True),
        ("public.example:8080", "public.example", 8081, False),
        (f"{PUBLIC_V4}:8080", "public.example", 8080, True),
        ("::1", "::1", 80, True),
        ("[::1]", "0:0:0:0:0:0:0:1", 81, True),
        ("[::1]:8080", "::1", 8080, True),
        ("[::1]:8080", "::1", 80, False),
        ("fd00::/8", "six.example", 80, True),
        ("fd00::/8:8080", "six.example", 8080, True),
        ("fd00::/8:8080", "six.example", 80, False),
        ("[fd00::/8]:8080", "six.example", 8080, True),
        ("[fd00::]/8:8080", "six.example", 8080, True),
        ("0.0.0.0/0", "127.0.0.1", 1, True),
        ("0.0.0.0/0", "0x7f.1", 80, False),
        ("0.0.0.0/0", "six.example", 80, False),
    ],
)
def test_what_an_entry_opens(allow: str, host: str, port: int, opens: bool) -> None:
    the_guard = EgressGuard(allow.split(","), resolve=INNER)
    if opens:
        assert the_guard.check(host, port)
    else:
        with pytest.raises(UrlNotAllowed):
            the_guard.check(host, port)


@pytest.mark.parametrize(
    "entry",
    [
        *("", " ", "*", "*.example", "10.0.0.1/8", "10.0.0.0/33", "host:0", "host:65536", "host:http", "http://host"),
        *("::1::", "[::1", "::1]", "[host]:80", "[10.0.0.1]", "2130706433", "127.1", "0x7f.0.0.1", "a b"),
        *("fd00::1/8", "host/24"),
    ],
)
def test_a_bad_entry_stops_the_start(entry: str) -> None:
    with pytest.raises(SettingsError, match="DM_DOWNLOAD_ALLOW"):
        EgressGuard(["10.0.0.0/8", entry])


# --- what the operator denies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deny", "host", "port", "shut"),
    [
        ("data.example", "data.example", 443, True),
        ("data.example", "DATA.example.", 80, True),
        ("data.example", "deep.below.data.example", 443, True),
        ("data.example", "otherdata.example", 443, False),
        ("data.example:80", "data.example", 80, True),
        ("data.example:80", "data.example", 443, False),
        (PUBLIC_V4, "alias.example", 443, True),
        (PUBLIC_V4, PUBLIC_V4, 443, True),
        (PUBLIC_V4, f"[::ffff:{PUBLIC_V4}]", 443, True),
        (PUBLIC_V4, "[64:ff9b::5db8:d822]", 443, True),
        ("93.184.216.0/24", "[::5db8:d822]", 443, True),
        ("93.184.216.0/24", "[::ffff:0:5db8:d822]", 443, True),
        ("93.184.216.0/24", "[2002:5db8:d822::1]", 443, True),
        ("93.184.216.0/24", "[64:ff9b:1::5db8:d822]", 443, True),
        ("93.184.216.0/24", "[64:ff9b:1:5db8:d8:2200::]", 443, True),
        ("93.184.216.0/24", "[64:ff9b:1:5db8:d8:2200:0:1]", 443, True),
        ("93.184.216.0/24", "[2001:0:5db8:d822::1]", 443, True),
        ("93.184.216.0/24", "[2001::a247:27dd]", 443, True),
        ("93.184.216.0/24", "[2606:2800::5efe:5db8:d822]", 443, True),
        ("93.184.216.0/24", "[2606:2800::5db8:d822]", 443, False),
        ("93.184.0.0/16", "data.example", 443, True),
        ("93.184.0.0/16:22", "data.example", 443, False),
        ("93.184.0.0/16:22", "data.example", 22, True),
        ("2606:2800::/32", f"[{PUBLIC_V6}]", 443, True),
        (f"[{PUBLIC_V6}]:443", f"[{PUBLIC_V6}]", 443, True),
        (":22", "data.example", 22, True),
        (":22", PUBLIC_V4, 22, True),
        (":22", "data.example", 443, False),
        ("10.0.0.0/8", "data.example", 443, False),
    ],
)
def test_what_is_denied_stays_shut_whatever_is_allowed(deny: str, host: str, port: int, shut: bool) -> None:
    everything = ("0.0.0.0/0", "::/0", "data.example", "deep.below.data.example", "alias.example")
    for allow in ((), everything):
        guarded = EgressGuard(allow, (deny,), resolve=lambda _host, _port: [PUBLIC_V4])
        if shut:
            with pytest.raises(UrlNotAllowed, match="DM_DOWNLOAD_DENY"):
                guarded.check(host, port)
        else:
            assert guarded.check(host, port)


def test_one_denied_answer_of_several_is_enough() -> None:
    guarded = EgressGuard(("data.example",), ("10.0.0.0/8",), resolve=lambda _host, _port: [PUBLIC_V4, "10.1.2.3"])
    with pytest.raises(UrlNotAllowed):
        guarded.check("data.example", 443)


@pytest.mark.parametrize("entry", ["", ":", ":0", ":65536", ":x", "a b", "http://x/", "10.0.0.0/33"])
def test_a_bad_denial_stops_the_start(entry: str) -> None:
    with pytest.raises(SettingsError, match="DM_DOWNLOAD_DENY"):
        EgressGuard((), (entry,))


INSIDE = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "100.64.0.1"]
PLACES = ["url", "mirrors", "checksum", "proxy"]


@pytest.mark.parametrize("inner", INSIDE)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("turn", [0, 1])
def test_no_place_of_a_request_gets_inside(place: str, inner: str, turn: int) -> None:
    """Each URL that a request names is checked, also when its name gets another address between two look-ups."""
    answers = [PUBLIC_V4] * turn + [inner]
    asked: list[str] = []

    def resolve(host: str, _port: int) -> list[str]:
        if host != "inner.example":
            return [PUBLIC_V4]
        asked.append(host)
        return [answers[min(len(asked), len(answers)) - 1]]

    urls = {"url": "https://inner.example/f"} if place == "url" else {"url": "https://outer.example/f"}
    named: dict[str, dict[str, object]] = {
        "mirrors": {"mirrors": ["https://inner.example/f"]},
        "checksum": {"checksum": "https://inner.example/SHA256SUMS"},
        "proxy": {"proxy": "http://inner.example:80"},
    }
    options = named.get(place, {})
    guard = EgressGuard(resolve=resolve)
    for _ in range(turn):
        check_download(urls["url"], "https", options, guard)
    with pytest.raises(UrlNotAllowed):
        check_download(urls["url"], "https", options, guard)
