"""What tells where an object came from: two things are never taken for the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamanager.domain.requests import GetExternalRequest
from datamanager.sealing import Sealer
from datamanager.sources.terms.source_validators import identity_or_none

URL = "https://data.example/a.gz"


def test_what_is_fetched_otherwise_is_another_thing(tmp_path: Path) -> None:
    sealer = Sealer(tmp_path / "secrets.key", made_here=True)

    def of(url: str = URL, **options: Any) -> tuple[str, str | None] | None:
        return identity_or_none(GetExternalRequest(url=url, machine="m", filename="a", options=options), sealer)

    assert of() == (URL, None)
    assert of(timeout=5) == of()
    different = [
        of(),
        of(decompress="gzip"),
        of(decompress="zstd"),
        of(f"{URL}?x=1"),
        of(f"{URL}?x=1", decompress="gzip"),
        of(query={"x": "2"}),
    ]
    assert len(set(different)) == len(different)
    assert of(decompress="gzip") == different[1]
