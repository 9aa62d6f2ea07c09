import io
import random

import pytest

from node_agent.errors import DiskFull
from node_agent.runtime.logcut import copy_cut

TEXT = bytes(range(256)) * 40


def pieces(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


def cut(content: bytes, *, limit: int, size: int = 100) -> bytes:
    into = io.BytesIO()
    copy_cut(pieces(content, size), into, limit=limit)
    return into.getvalue()


@pytest.mark.parametrize("size", [1, 7, 100, 20_000])
def test_what_fits_is_copied_byte_for_byte(size: int) -> None:
    assert cut(TEXT, limit=len(TEXT), size=size) == TEXT


@pytest.mark.parametrize("size", [1, 7, 100, 20_000])
def test_head_and_tail_are_kept_and_the_cut_says_how_much_is_missing(size: int) -> None:
    result = cut(TEXT, limit=1000, size=size)
    head, _, rest = result.partition(b"\n[\xe2\x80\xa6 ")
    number, _, tail = rest.partition(b" bytes of the log are left out here \xe2\x80\xa6]\n")
    assert len(result) <= 1000
    assert len(head) == 250
    assert TEXT.startswith(head)
    assert TEXT.endswith(tail)
    assert len(head) + int(number) + len(tail) == len(TEXT)


def test_no_limit_is_ever_exceeded() -> None:
    chance = random.Random(1)
    for _ in range(300):
        limit, size, length = chance.randrange(400), chance.randrange(1, 300), chance.randrange(2000)
        content = bytes(chance.randrange(256) for _ in range(length))
        result = cut(content, limit=limit, size=size)
        assert len(result) <= limit
        assert length > limit or result == content


def test_nothing_gives_nothing() -> None:
    assert cut(b"", limit=100) == b""


def test_a_full_disk_is_named() -> None:
    class FullDisk(io.BytesIO):
        def write(self, _content):
            raise OSError(28, "No space left on device")

    with pytest.raises(DiskFull, match="No space left"):
        copy_cut([b"text"], FullDisk(), limit=100)
