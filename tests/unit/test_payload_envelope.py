"""Sealed messages: what is written can be read, what others write too, and what is damaged says so."""

import base64
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from node_agent.domain.task import OrganizationId
from node_agent.errors import InputUnreadable, KeyMissing
from node_agent.payload.chunks import PIECE, Literal, PlainFile
from node_agent.payload.codec import SealedCodec
from node_agent.payload.envelope import (
    EnvelopeError,
    Sealed,
    seal,
    seal_blob,
    sealed_blob_length,
    sealed_length,
    unseal,
    unseal_blob,
)
from node_agent.payload.keys import PrivateKey, PublicKey

RAW = rsa.generate_private_key(65537, 2048)
KEY = PrivateKey(RAW)
OTHER = PrivateKey(rsa.generate_private_key(65537, 2048))
LONGER = PrivateKey(rsa.generate_private_key(65537, 3072))

MESSAGES = [
    b"",
    b"x",
    b'{"method": "m", "kwargs": {}}',
    "Größe: 日本 🎉 \x00".encode(),
    bytes(range(256)) * 5,
    *(os.urandom(n) for n in (2, 3, 4, 15, 16, 17, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 1)),
]


def cut(content: bytes, size: int) -> Iterator[bytes]:
    return (content[at : at + size] for at in range(0, len(content), size))


def plainly_sealed(message: bytes, *, secret: bytes | None = None, iv: bytes = b"\xff" * 16) -> bytes:
    """Seal with nothing but the library; the counter overflows, since others may choose any beginning."""
    key = b"k" * 32
    cipher = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    block = RAW.public_key().encrypt(key if secret is None else secret, padding.PKCS1v15())
    return b"$".join(base64.b64encode(part) for part in (block, iv, cipher.update(message)))


def plainly_opened(text: bytes) -> bytes:
    block, iv, content = (base64.b64decode(part) for part in text.split(b"$"))
    cipher = Cipher(algorithms.AES(RAW.decrypt(block, padding.PKCS1v15())), modes.CTR(iv))
    return cipher.decryptor().update(content)


@pytest.mark.parametrize("message", MESSAGES, ids=len)
def test_a_message_comes_back_as_it_was_and_its_length_is_known_before(message: bytes) -> None:
    text = b"".join(seal(cut(message, 1000), KEY.public))
    blob = b"".join(seal_blob(cut(message, 1000), KEY.public))
    assert len(text) == sealed_length(len(message), KEY.public)
    assert len(blob) == sealed_blob_length(len(message), KEY.public)
    assert b"".join(unseal(cut(text, 777), KEY)) == message
    assert b"".join(unseal_blob(cut(blob, 777), KEY)) == message


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100, 10_000])
def test_it_does_not_matter_where_a_message_is_cut(size: int) -> None:
    message = bytes(range(250))
    text = b"".join(seal(cut(message, size), KEY.public))
    assert b"".join(unseal(cut(text, size), KEY)) == message
    assert b"".join(unseal_blob(cut(b"".join(seal_blob([message], KEY.public)), size), KEY)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=len)
def test_the_form_is_the_one_the_library_gives_when_it_is_used_plainly(message: bytes) -> None:
    assert plainly_opened(b"".join(seal([message], KEY.public))) == message
    assert b"".join(unseal([plainly_sealed(message)], KEY)) == message


def test_keys_of_any_size_work() -> None:
    text = b"".join(seal([b"hello"], LONGER.public))
    assert len(text) == sealed_length(5, LONGER.public)
    assert b"".join(unseal([text], LONGER)) == b"hello"


def test_no_two_sealed_messages_are_alike() -> None:
    sealed = Sealed(Literal(b"hello"), KEY.public)
    one, other = b"".join(sealed), b"".join(sealed)
    assert len(one) == len(other) == sealed.length
    assert not set(one.split(b"$")) & set(other.split(b"$"))


def test_a_key_written_as_base64_text_is_understood() -> None:
    text = plainly_sealed(b"hello", secret=base64.b64encode(b"k" * 32))
    assert b"".join(unseal([text], KEY)) == b"hello"


def parts(**changes: bytes) -> bytes:
    block, iv, content = plainly_sealed(b"a message").split(b"$")
    return b"$".join(({"block": block, "iv": iv, "content": content} | changes).values())


WHOLE = plainly_sealed(b"a message")
DAMAGED = {
    "nothing": b"",
    "plain base64": base64.b64encode(b'{"method": "m"}'),
    "two parts": WHOLE.rpartition(b"$")[0],
    "no separator at all": b"A" * 100_000,
    "separators far away": b"A" * 100_000 + b"$$",
    "first part no base64": parts(block=b"!" * 344),
    "first part empty": parts(block=b""),
    "first part short": parts(block=base64.b64encode(b"x" * 255)),
    "first part long": parts(block=base64.b64encode(b"x" * 257)),
    "second part no base64": parts(iv=b"!"),
    "second part short": parts(iv=base64.b64encode(b"x" * 15)),
    "second part long": parts(iv=base64.b64encode(b"x" * 17)),
    "second part empty": parts(iv=b""),
    "third part no base64": parts(content=b"!!!!"),
    "third part cut off": parts(content=b"AAAAA"),
    "four parts": WHOLE + b"$AAAA",
    "white space": WHOLE + b"\n",
    "secret too short": plainly_sealed(b"m", secret=b"k" * 31),
    "secret too long": plainly_sealed(b"m", secret=b"k" * 33),
    "secret of another form": plainly_sealed(b"m", secret=b"!" * 44),
    "a key of another size": b"".join(seal([b"hello"], LONGER.public)),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("size", [1, 100, 1_000_000])
def test_a_damaged_message_says_so_and_nothing_else(text: bytes, size: int) -> None:
    with pytest.raises(EnvelopeError):
        list(unseal(cut(text, size), KEY))


def test_a_message_for_another_key_says_so() -> None:
    # the library answers a wrong key with noise, which has the right length once in some hundred times
    texts = [b"".join(seal([b"hello"], OTHER.public)) for _ in range(8)]
    assert sum("another key" in refusal(text) for text in texts) >= 6


def refusal(text: bytes) -> str:
    try:
        list(unseal([text], KEY))
    except EnvelopeError as error:
        return str(error)
    return ""


def test_a_blob_that_is_damaged_says_so_before_anything_is_given() -> None:
    with pytest.raises(EnvelopeError):
        unseal_blob([b"no blob"], KEY)


def test_memory_does_not_grow_with_the_message() -> None:
    piece = os.urandom(PIECE)
    tracemalloc.start()
    try:
        sealed = seal((piece for _ in range(64 * 1024 * 1024 // PIECE)), KEY.public)
        assert sum(map(len, unseal(sealed, KEY))) == 64 * 1024 * 1024 // PIECE * PIECE
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 1024 * 1024


# --- inputs and results ---------------------------------------------------------------------------------------

READER = OrganizationId(3)


def keys(organization: OrganizationId) -> PublicKey:
    if organization != READER:
        raise KeyMissing(f"Organization {organization} has no public key.")
    return KEY.public


CODEC = SealedCodec(KEY, keys)


def read(text: bytes) -> bytes:
    return b"".join(CODEC.decode_input(Literal(text)))


def sealed(message: bytes) -> bytes:
    return b"".join(seal([message], KEY.public))


@pytest.mark.parametrize("message", MESSAGES, ids=len)
def test_an_input_is_given_as_it_was_written(message: bytes) -> None:
    assert read(sealed(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        json.dumps({"method": "m", "kwargs": {"x": ["é", 1]}}).encode(),
        b"[]",
        b'"text"',
        b" \n{}",
        b"0",
        b"-1",
        b"null",
    ],
)
def test_the_base64_that_the_web_interface_puts_around_a_message_is_taken_off(message: bytes) -> None:
    assert read(sealed(base64.b64encode(message))) == message


@pytest.mark.parametrize(
    "message",
    [
        b"true",
        b"null",
        b"1234",
        b"12e4",
        b"abcd",
        b"hello",
        base64.b64encode(b"hello"),
        base64.b64encode(b"\xff\xfe"),
        base64.b64encode(b"{} {}"),
        base64.b64encode(b"{}") + b"\n",
        base64.b64encode(base64.b64encode(b"{}")),
        b'"e30="',
    ],
)
def test_what_only_looks_like_base64_is_left_as_it_is(message: bytes) -> None:
    assert read(sealed(message)) == message


def test_an_input_that_cannot_be_read_tells_the_researcher_what_to_do() -> None:
    with pytest.raises(InputUnreadable) as caught:
        read(base64.b64encode(b'{"method": "m"}'))
    assert "not sealed" in str(caught.value)
    assert KEY.public.fingerprint in str(caught.value)


def test_a_result_is_sealed_for_the_organization_that_asked(tmp_path: Path) -> None:
    (tmp_path / "result").write_bytes(b"\x00\xff result")
    result = CODEC.encode_result(tmp_path / "result", reader=READER)
    text = b"".join(result)
    assert len(text) == result.length
    assert plainly_opened(text) == b"\x00\xff result"


def test_an_empty_result_is_sealed_like_others_and_no_result_needs_no_key(tmp_path: Path) -> None:
    (tmp_path / "result").touch()
    assert plainly_opened(b"".join(CODEC.encode_result(tmp_path / "result", reader=READER))) == b""
    assert b"".join(CODEC.encode_result(None, reader=None)) == b""


@pytest.mark.parametrize("reader", [None, OrganizationId(4)])
def test_a_result_that_nobody_could_read_is_not_sealed(tmp_path: Path, reader: OrganizationId | None) -> None:
    (tmp_path / "result").touch()
    with pytest.raises(KeyMissing):
        CODEC.encode_result(tmp_path / "result", reader=reader)


def test_memory_does_not_grow_with_an_input_however_it_is_wrapped(tmp_path: Path) -> None:
    wrapped = base64.b64encode(json.dumps({"a": "x" * 12_000_000}).encode())
    (tmp_path / "input").write_bytes(sealed(wrapped))
    del wrapped
    tracemalloc.start()
    try:
        size = sum(map(len, CODEC.decode_input(PlainFile(tmp_path / "input"))))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 12_000_009
    assert peak < 2 * 1024 * 1024
