"""Entries of a followed log: their stamps, and none of them twice."""

import io
import struct

from node_agent.domain.runlogs import LogEntry
from node_agent.runtime.logfollow import entries_after, follow_parameters, frames_of

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


def test_frames_are_parted_and_a_stream_that_is_cut_off_ends() -> None:
    def frame(kind: int, content: bytes) -> bytes:
        return struct.pack(">BxxxL", kind, len(content)) + content

    stream = frame(1, b"out\n") + frame(2, b"") + frame(2, b"err\n")
    assert list(frames_of(io.BytesIO(stream))) == [b"out\n", b"", b"err\n"]
    assert list(frames_of(io.BytesIO(stream[:-2]))) == [b"out\n", b"", b"er"]
    assert list(frames_of(io.BytesIO(b"\x01\x00"))) == []
