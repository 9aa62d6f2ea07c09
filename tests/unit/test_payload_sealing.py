"""Results sealed while they wait: for a key that was learned before, in the two forms they travel in."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from node_agent.domain.task import OrganizationId
from node_agent.errors import KeyMissing
from node_agent.payload.envelope import unseal, unseal_blob
from node_agent.payload.keys import PrivateKey, PublicKey
from node_agent.payload.sealing import EnvelopeSeal

READER = OrganizationId(3)
KEY = PrivateKey(rsa.generate_private_key(65537, 2048))
RESULTS = [b"", b"42", bytes(range(256)) * 1000]


def nobody(reader: OrganizationId) -> PublicKey:
    raise AssertionError(f"asked for the key of {reader}")


@pytest.fixture(params=RESULTS, ids=len)
def content(request: pytest.FixtureRequest) -> bytes:
    chosen: bytes = request.param
    return chosen


@pytest.mark.parametrize(
    ("seal", "opened"), [(EnvelopeSeal.sealed, unseal), (EnvelopeSeal.sealed_blob, unseal_blob)]
)
def test_only_the_reader_opens_what_was_sealed_and_nobody_is_asked(
    tmp_path: Path,
    content: bytes,
    seal: Callable[[EnvelopeSeal, Path, str], Iterable[bytes]],
    opened: Callable[[Iterable[bytes], PrivateKey], Iterable[bytes]],
) -> None:
    (tmp_path / "result").write_bytes(content)
    sealed = b"".join(seal(EnvelopeSeal(nobody), tmp_path / "result", KEY.public.wire))
    assert b"".join(opened([sealed], KEY)) == content


def test_the_key_of_the_reader_is_given_in_the_form_it_is_kept_in() -> None:
    assert EnvelopeSeal({READER: KEY.public}.__getitem__).reader_key(READER) == KEY.public.wire


def test_a_run_of_which_nobody_knows_who_asked_is_refused() -> None:
    with pytest.raises(KeyMissing, match="does not say which organization"):
        EnvelopeSeal(nobody).reader_key(None)


def test_a_kept_key_that_is_damaged_says_so(tmp_path: Path) -> None:
    (tmp_path / "result").write_bytes(b"42")
    with pytest.raises(KeyMissing, match="kept for the reader of the result is damaged"):
        EnvelopeSeal(nobody).sealed(tmp_path / "result", KEY.public.wire[:-8])
