"""What passes on its way out of the blob store, and what does not."""

import pytest

from node_agent.errors import BlobUnreadable, InputUnreadable
from node_agent.server.blobs import bounded, uncut


def test_an_input_may_be_as_large_as_the_limit() -> None:
    assert list(bounded(iter([b"12", b"34"]), limit=4)) == [b"12", b"34"]


def test_an_input_over_the_limit_is_refused_before_its_end() -> None:
    pieces = bounded(iter([b"12", b"345", b"6"]), limit=4)
    assert next(pieces) == b"12"
    with pytest.raises(InputUnreadable, match="larger than 4 bytes"):
        next(pieces)


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b""],
        [b"{", b"}"],
        [b'{"a": {}', b"}", b"\n ", b""],
        [b"\x80\x04 a pickle"],
        [b"[1, 2"],
    ],
)
def test_what_may_be_whole_passes_unchanged(pieces: list[bytes]) -> None:
    assert list(uncut(iter(pieces))) == pieces


@pytest.mark.parametrize("pieces", [[b"{"], [b'{"a"', b": {}", b", "], [b"", b'{"a": 1', b""]])
def test_an_object_without_its_end_is_refused_at_the_end(pieces: list[bytes]) -> None:
    passed = []
    with pytest.raises(BlobUnreadable, match="ends in the middle"):
        passed.extend(uncut(iter(pieces)))
