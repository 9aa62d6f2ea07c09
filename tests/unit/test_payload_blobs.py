"""How inputs and results are written for the blob store."""

import base64
from pathlib import Path

import pytest

from node_agent.domain.task import OrganizationId
from node_agent.errors import BlobUnreadable, InputUnreadable, KeyMissing
from node_agent.payload.codec import PayloadCodec, PlainCodec, SealedCodec
from node_agent.payload.keys import PrivateKey, create_private_key

READER = OrganizationId(3)
MESSAGES = [b"", b"{}", bytes(range(256)) * 1000, b"$" * 100]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> PrivateKey:
    file = tmp_path_factory.mktemp("key") / "alpha.pem"
    create_private_key(file)
    return PrivateKey.load(file)


@pytest.fixture
def sealed(key: PrivateKey) -> SealedCodec:
    return SealedCodec(key, {READER: key.public}.__getitem__)


@pytest.mark.parametrize("message", MESSAGES)
def test_without_encryption_a_blob_is_base64(tmp_path: Path, message: bytes) -> None:
    assert blob_of(PlainCodec(), tmp_path, message) == base64.b64encode(message)
    assert opened(PlainCodec(), base64.b64encode(message)) == message


@pytest.mark.parametrize("message", MESSAGES)
def test_with_encryption_only_the_head_of_a_blob_is_text(
    sealed: SealedCodec, tmp_path: Path, message: bytes
) -> None:
    blob = blob_of(sealed, tmp_path, message)
    block, start, content = blob.split(b"$", 2)
    assert (len(block), len(start), len(content)) == (684, 24, len(message))
    assert opened(sealed, blob) == message


def test_a_plain_blob_that_is_no_base64_may_have_been_cut_off() -> None:
    with pytest.raises(BlobUnreadable):
        opened(PlainCodec(), b"e30")


def test_a_blob_that_is_not_sealed_cannot_be_read(sealed: SealedCodec) -> None:
    with pytest.raises(InputUnreadable, match="cannot be read by this node"):
        opened(sealed, b"e30=")


def test_a_result_for_nobody_is_not_sealed(sealed: SealedCodec, tmp_path: Path) -> None:
    with pytest.raises(KeyMissing):
        sealed.encode_blob(tmp_path, reader=None)


def blob_of(codec: PayloadCodec, folder: Path, message: bytes) -> bytes:
    (folder / "result").write_bytes(message)
    chunks = codec.encode_blob(folder / "result", reader=READER)
    blob = b"".join(chunks)
    assert len(blob) == chunks.length
    return blob


def opened(codec: PayloadCodec, blob: bytes) -> bytes:
    return b"".join(codec.decode_blob(blob[at : at + 1000] for at in range(0, len(blob), 1000)))
