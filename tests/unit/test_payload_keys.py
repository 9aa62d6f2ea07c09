"""Keys: only good ones are taken, nothing is overwritten, and two people can tell whether they have the same."""

import base64
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from node_agent.errors import ConfigError
from node_agent.payload.keys import KeyUnreadable, PrivateKey, PublicKey, create_private_key

SMALL = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to see it refused
CURVE = ec.generate_private_key(ec.SECP256R1())
GOOD = rsa.generate_private_key(65537, 2048)
PEM = Encoding.PEM
PKCS8 = PrivateFormat.PKCS8


def private_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, form: PrivateFormat = PKCS8) -> bytes:
    return key.private_bytes(PEM, form, NoEncryption())


def public_text(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    pem = key.public_key().public_bytes(PEM, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(pem).decode()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_key(content: bytes, mode: int = 0o600) -> Path:
        path = tmp_path / "key.pem"
        path.write_bytes(content)
        path.chmod(mode)
        return path

    return write_key


def test_a_new_key_is_private_and_in_the_form_that_everybody_reads(tmp_path: Path) -> None:
    path = tmp_path / "new.pem"
    made = create_private_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN RSA PRIVATE KEY-----\n")
    assert PrivateKey.load(path).public == made.public
    assert (made.public.block_length, len(made.public.wire)) == (512, 1068)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", ["file", "link to nothing", "folder"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    path = tmp_path / "key.pem"
    {
        "file": lambda: path.write_text("precious"),
        "link to nothing": lambda: path.symlink_to(tmp_path / "nowhere"),
        "folder": path.mkdir,
    }[there]()
    with pytest.raises(ConfigError, match="already") as caught:
        create_private_key(path)
    assert "--out" in caught.value.hint
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/key.pem: No such file or directory"):
        create_private_key(tmp_path / "nowhere" / "key.pem")


@pytest.mark.parametrize("form", [PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_a_good_key_is_read_in_both_forms(write: Callable[..., Path], form: PrivateFormat, mode: int) -> None:
    key = PrivateKey.load(write(private_pem(GOOD, form), mode))
    assert key.public.wire == public_text(GOOD)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (private_pem(GOOD), 0o604, "open to every user"),
        (private_pem(SMALL), 0o600, "has 1024 bits"),
        (private_pem(CURVE), 0o600, "no RSA key"),
        (GOOD.private_bytes(PEM, PKCS8, BestAvailableEncryption(b"word")), 0o600, "passphrase"),
        (b"", 0o600, "no private key in PEM form"),
        (b"hello", 0o600, "no private key in PEM form"),
        (base64.b64decode(public_text(GOOD)), 0o600, "no private key in PEM form"),
        (GOOD.private_bytes(Encoding.DER, PKCS8, NoEncryption()), 0o600, "no private key in PEM form"),
        (private_pem(GOOD)[:-200], 0o600, "no private key in PEM form"),
    ],
)
def test_a_key_that_is_not_good_says_why_and_what_to_do(
    write: Callable[..., Path], content: bytes, mode: int, said: str
) -> None:
    path = write(content, mode)
    with pytest.raises(ConfigError, match=said) as caught:
        PrivateKey.load(path)
    assert str(path) in caught.value.message
    assert "encryption.private_key" in caught.value.message
    assert caught.value.hint


def test_a_key_that_is_not_there_or_is_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        PrivateKey.load(tmp_path / "key.pem")
    with pytest.raises(ConfigError, match="cannot be read"):
        PrivateKey.load(tmp_path)


def test_a_private_key_never_shows_itself(write: Callable[..., Path]) -> None:
    key = PrivateKey.load(write(private_pem(GOOD)))
    assert repr(key) == f"PrivateKey({key.public.fingerprint})"
    numbers = GOOD.private_numbers()
    assert str(numbers.d) not in repr(vars(key))


def test_the_fingerprint_is_of_the_key_and_not_of_its_spelling() -> None:
    pem = GOOD.public_key().public_bytes(PEM, PublicFormat.SubjectPublicKeyInfo)
    spelled = base64.b64encode(b"\n" + pem.replace(b"\n", b"\r\n")).decode()
    one, other = PublicKey.from_wire(public_text(GOOD)), PublicKey.from_wire(spelled)
    assert one == other
    assert one.fingerprint == other.fingerprint
    assert len(one.fingerprint.split("-")) == 8
    assert one.fingerprint != PublicKey(rsa.generate_private_key(65537, 2048).public_key()).fingerprint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no base64 of a PEM"),
        ("é", "no base64"),
        ("AAAA", "no base64 of a PEM"),
        ("A" * 70_000, "too long"),
        (public_text(GOOD)[:-8], "no base64"),
        (public_text(SMALL), "1024 bits"),
        (public_text(CURVE), "no RSA key"),
        (base64.b64encode(private_pem(GOOD)).decode(), "no base64 of a PEM public key"),
    ],
)
def test_what_is_no_public_key_says_why(text: str, said: str) -> None:
    with pytest.raises(KeyUnreadable, match=said):
        PublicKey.from_wire(text)
