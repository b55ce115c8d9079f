"""Places can't leave their machine's base directory, and temporary names fit the file system."""

from __future__ import annotations

import posixpath
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamanager.domain.location import (
    NAME_MAX,
    PART_SUFFIX,
    PATH_MAX,
    Place,
    normalised_prefix,
    split_dest,
    temporary_name,
)
from datamanager.errors import PathNotAllowed
from datamanager.machines import Machine, TransportKind


def machine(base_dir: str = "/data/base") -> Machine:
    return Machine(name="alpha", transport=TransportKind.LOCAL, base_dir=base_dir)


HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(["..", ".", "", "/", "a", "data", "base", "b c", "...", "..a", "\0", "~", "-x"]),
        st.text(max_size=5),
    ),
    max_size=8,
).map("/".join)


@given(path=HOSTILE, base=st.sampled_from(["/data/base", "/", "/data"]))
def test_a_place_never_escapes(path: str, base: str) -> None:
    try:
        place = Place.of(machine(base), path)
    except PathNotAllowed:
        return
    whole = posixpath.normpath(posixpath.join(base, place.path))
    assert whole.startswith(base.rstrip("/") + "/")
    assert posixpath.normpath(place.path) == place.path
    assert not place.path.startswith("/")
    assert "\0" not in place.path
    assert place.name
    place.path.encode("utf-8")


@given(path=HOSTILE)
def test_normalising_twice_changes_nothing(path: str) -> None:
    try:
        place = Place.of(machine(), path)
    except PathNotAllowed:
        return
    assert Place.of(machine(), place.path) == place
    assert Place.of(machine(), "/data/base", place.path) == place


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (("a",), "a"),
        (("a", "b.nc"), "a/b.nc"),
        (("", "b.nc"), "b.nc"),
        (("./a//b/./c",), "a/b/c"),
        (("/data/base/a",), "a"),
        (("//data/./base//a",), "a"),
        (("/data/base", "a"), "a"),
        (("/data/base/", "a"), "a"),
        (("..a/b..",), "..a/b.."),
        ((" a b ",), " a b "),
        (("-rf", "$(id)"), "-rf/$(id)"),
        (("quo'te\"", "new\nline"), "quo'te\"/new\nline"),
    ],
)
def test_places(given: tuple[str, ...], path: str) -> None:
    place = Place.of(machine(), *given)
    assert (place.machine, place.path, str(place)) == ("alpha", path, f"alpha:{path}")
    assert place.name == path.rpartition("/")[2]


@pytest.mark.parametrize(
    "given",
    [
        "",
        ".",
        "./",
        "/",
        "..",
        "a/..",
        "a/../b",
        "../a",
        "/data/base",
        "/data/base/",
        "/data/basement/a",
        "/data",
        "/etc/passwd",
        "/data/base/../x",
        "a/",
        "a\0b",
        "\ud800",
        "x" * (NAME_MAX + 1),
        "ä" * 128,
        "a/" * (PATH_MAX // 2) + "aa",
        f"a{PART_SUFFIX}",
        f"a{PART_SUFFIX}/b",
    ],
)
def test_what_is_no_place(given: str) -> None:
    with pytest.raises(PathNotAllowed):
        Place.of(machine(), given)


def test_the_longest_names_are_places() -> None:
    assert Place.of(machine(), "x" * NAME_MAX).name == "x" * NAME_MAX
    assert len(Place.of(machine(), "a/" * (PATH_MAX // 2 - 1) + "aa").path) == PATH_MAX


def test_the_root_as_base_dir() -> None:
    assert Place.of(machine("/"), "/etc/hosts").path == "etc/hosts"


@pytest.mark.parametrize(
    ("dest", "parts"),
    [
        ("a", ("", "a")),
        ("a/b", ("a", "b")),
        ("/a", ("/", "a")),
        ("/a/b/c", ("/a/b", "c")),
        ("a/", ("a", "")),
        ("", ("", "")),
    ],
)
def test_splitting_a_destination(dest: str, parts: tuple[str, str]) -> None:
    assert split_dest(dest) == parts


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ("", ""),
        (".", ""),
        ("a", "a"),
        ("a/", "a"),
        ("./a//b/", "a/b"),
        ("/data/base/a", "a"),
        ("/data/base/a/", "a"),
        ("/data/base", ""),
        ("/data/base/", ""),
    ],
)
def test_prefixes(given: str, prefix: str) -> None:
    assert normalised_prefix(machine(), given) == prefix


@pytest.mark.parametrize("given", ["..", "a/..", "/etc", "a\0"])
def test_what_is_no_prefix(given: str) -> None:
    with pytest.raises(PathNotAllowed):
        normalised_prefix(machine(), given)


@given(
    name=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=300),
    epoch=st.integers(1, 10**9),
)
def test_temporary_names_fit(name: str, epoch: int) -> None:
    transfer = uuid4()
    temporary = temporary_name(name, transfer, epoch)
    assert len(temporary.encode("utf-8")) <= NAME_MAX
    assert temporary.startswith(".")
    assert temporary.endswith(f".{transfer.hex[:8]}.{epoch}{PART_SUFFIX}")
    assert "/" not in temporary
    if len(name.encode("utf-8")) < 200:
        assert temporary.startswith(f".{name}.")


def test_each_attempt_has_a_name_of_its_own() -> None:
    one, other = uuid4(), uuid4()
    names = {temporary_name("x" * 255, transfer, epoch) for transfer in (one, other) for epoch in (1, 2, 11)}
    assert len(names) == 6


def test_long_names_that_begin_alike_have_different_temporary_names() -> None:
    transfer = uuid4()
    assert temporary_name("x" * 250 + "1.txt", transfer, 1) != temporary_name("x" * 250 + "2.txt", transfer, 1)


def test_nobody_can_ask_for_a_temporary_name() -> None:
    with pytest.raises(PathNotAllowed):
        Place.of(machine(), temporary_name("a", uuid4(), 1))
