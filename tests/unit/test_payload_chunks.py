"""Bodies that are made while they are sent have exactly the length they announce, and stay small in memory."""

import base64
import json
import tracemalloc
from pathlib import Path

import pytest

from node_agent.domain.ports import FinalReport
from node_agent.domain.run import Status
from node_agent.errors import InputUnreadable
from node_agent.payload.chunks import EscapedText, Literal, Sequence, decoded_base64, encoded_base64
from node_agent.payload.codec import PlainCodec
from node_agent.server import wire

SIZES = [0, 1, 2, 3, 4, 5, 49_151, 49_152, 49_153, 49_154, 98_304, 100_001]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def body_of(result: Path | None, log: Path | None) -> Sequence:
    final = FinalReport(
        status=Status.COMPLETED, result=result, log=log, started_at=0, finished_at=1, init_org_id=None
    )
    return wire.final_body(final, PlainCodec().encode_result(result, reader=None))


@pytest.mark.parametrize("size", SIZES)
def test_a_result_of_any_size_arrives_whole_and_its_length_is_exact(tmp_path: Path, size: int) -> None:
    content = bytes(n * 7 % 256 for n in range(size))
    body = body_of(write(tmp_path / "result", content), None)
    sent = b"".join(body)
    assert len(sent) == len(body)
    assert base64.b64decode(json.loads(sent)["result"], validate=True) == content


@pytest.mark.parametrize("shift", range(4))
def test_a_character_on_the_border_of_two_pieces_is_kept(tmp_path: Path, shift: int) -> None:
    text = "x" * (49_152 - shift) + "🎉" + "é" * 10
    body = body_of(None, write(tmp_path / "log", text.encode()))
    sent = b"".join(body)
    assert len(sent) == len(body)
    assert json.loads(sent)["log"] == text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", ""),
        (b'quote " backslash \\ newline \n', 'quote " backslash \\ newline \n'),
        (b"\x01\x1b[31m\x7f", "\x01\x1b[31m\x7f"),
        (b"bad \xff\xfe end", "bad �� end"),
        (b"cut \xf0\x9f\x8e", "cut �"),
        (b"null \x00", "null �"),
    ],
)
def test_a_log_arrives_as_text_whatever_its_bytes_are(tmp_path: Path, content: bytes, text: str) -> None:
    body = body_of(None, write(tmp_path / "log", content))
    sent = b"".join(body)
    assert len(sent) == len(body)
    assert json.loads(sent)["log"] == text


def test_a_body_may_be_sent_twice(tmp_path: Path) -> None:
    body = body_of(write(tmp_path / "r", b"abc"), write(tmp_path / "l", b"log"))
    assert b"".join(body) == b"".join(body)


def test_a_log_that_grows_meanwhile_does_not_make_the_body_longer(tmp_path: Path) -> None:
    path = write(tmp_path / "log", b"first")
    text = EscapedText(path)
    with path.open("ab") as file:
        file.write(b" second")
    assert b"".join(text) == b"first"


def test_memory_does_not_grow_with_the_result(tmp_path: Path) -> None:
    result, log = tmp_path / "result", write(tmp_path / "log", b"a line\n" * 400_000)
    with result.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    tracemalloc.start()
    try:
        body = body_of(result, log)
        assert sum(map(len, body)) == len(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 1024 * 1024


def test_no_result_is_an_empty_text() -> None:
    assert json.loads(b"".join(body_of(None, None)))["result"] == ""


def test_an_input_is_decoded_strictly() -> None:
    codec = PlainCodec()
    assert b"".join(codec.decode_input(Literal(b"AAEC"))) == b"\x00\x01\x02"
    for text in ("AAE", "AA EC", "AAEC\n", "A-_C", "ü", "AA==AAEC", "="):
        with pytest.raises(InputUnreadable, match="not valid base64"):
            list(codec.decode_input(Literal(text.encode())))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 1000])
def test_base64_does_not_depend_on_where_it_is_cut(size: int) -> None:
    for length in range(20):
        content = bytes(range(length))
        text = b"".join(encoded_base64(content[at : at + size] for at in range(0, length, size)))
        assert text == base64.b64encode(content)
        assert b"".join(decoded_base64(text[at : at + size] for at in range(0, len(text), size))) == content
