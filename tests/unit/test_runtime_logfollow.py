"""Entries of a followed log: their stamps, and none of them twice."""

import io
import random
import struct

import pytest

from node_agent.domain.runlogs import LogEntry
from node_agent.runtime import logfollow
from node_agent.runtime.logfollow import blocks_of, entries_after, follow_parameters, frames_of


class CountedReads(io.BytesIO):
    """Counts how often it is read from."""

    reads = 0

    def read(self, amt: int | None = -1) -> bytes:
        self.reads += 1
        return super().read(amt)


FIRST, SECOND = "2026-11-22T03:45:51.000000001Z", "2026-11-22T03:45:51.000000002Z"


def test_the_stamp_is_taken_from_the_text() -> None:
    frames = [f"{FIRST} a b\n".encode(), f"{SECOND} \xff\n".encode("latin-1")]
    assert list(entries_after("", frames)) == [LogEntry(FIRST, b"a b\n"), LogEntry(SECOND, b"\xff\n")]


def test_what_was_given_before_is_left_out_to_the_nanosecond() -> None:
    frames = [f"{FIRST} a\n".encode(), f"{SECOND} b\n".encode()]
    assert [entry.content for entry in entries_after(FIRST, frames)] == [b"b\n"]


def test_text_that_only_looks_stamped_is_kept_whole() -> None:
    frames = [b"no stamp here\n", b"\xff\xfe x\n", b"x" * 100 + b" y\n", b"\n"]
    assert [entry.content for entry in entries_after(SECOND, frames)] == frames


def test_the_engine_is_asked_a_little_earlier_or_for_everything() -> None:
    assert "since" not in follow_parameters("")
    assert "since" not in follow_parameters("nonsense")
    assert follow_parameters(FIRST)["since"] == "1795319151"


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000, 256 * 1024])
def test_blocks_hold_what_the_frames_hold_wherever_the_reading_cuts_them(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(size)
    contents = [b"x\n" * chance.randrange(5) + bytes([number % 256]) for number in range(300)]
    stream = b"".join(struct.pack(">BxxxL", 1 + number % 2, len(c)) + c for number, c in enumerate(contents))
    monkeypatch.setattr(logfollow, "_BLOCK", size)
    assert b"".join(blocks_of(io.BytesIO(stream))) == b"".join(contents)
    for cut in (1, 3, 5, 12):
        cut_off = stream[:-cut]
        assert b"".join(blocks_of(io.BytesIO(cut_off))) == b"".join(frames_of(io.BytesIO(cut_off)))


def test_a_log_of_short_lines_is_not_read_line_by_line() -> None:
    frame = struct.pack(">BxxxL", 1, 2) + b"a\n"
    lines = 100_000
    stream = CountedReads(frame * lines)
    assert b"".join(blocks_of(stream)) == b"a\n" * lines
    assert stream.reads < 10


def test_a_frame_larger_than_any_engine_sends_ends_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfollow, "_LARGEST_FRAME", 4)
    stream = struct.pack(">BxxxL", 1, 2**32 - 1) + b"abcd" + struct.pack(">BxxxL", 1, 2) + b"ef"
    assert list(frames_of(io.BytesIO(stream))) == [b"abcd", b"ef"]
    assert b"".join(blocks_of(io.BytesIO(stream))) == b"abcdef"


def test_frames_are_parted_and_a_stream_that_is_cut_off_ends() -> None:
    def frame(kind: int, content: bytes) -> bytes:
        return struct.pack(">BxxxL", kind, len(content)) + content

    stream = frame(1, b"out\n") + frame(2, b"") + frame(2, b"err\n")
    assert list(frames_of(io.BytesIO(stream))) == [b"out\n", b"", b"err\n"]
    assert list(frames_of(io.BytesIO(stream[:-2]))) == [b"out\n", b"", b"er"]
    assert list(frames_of(io.BytesIO(b"\x01\x00"))) == []
