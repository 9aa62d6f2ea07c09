"""The RSA keys of organizations: read, made, written for the server, and shown so that people can compare them.

Owns the forms of keys. Must not know messages, calls or settings.
"""

import base64
import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from node_agent.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import rsa

SMALLEST_KEY = 2048
LARGEST_KEY = 16_384
NEW_KEY = 4096
_EXPONENT = 65_537
_MAX_FILE = 64 * 1024
_SHOWN_BYTES = 16
_MAKE_ONE = "Make one with: node-agent key create -c FILE"


class KeyUnreadable(ValueError):
    """What should be a public key is none that messages can be sealed for."""


class PublicKey:
    """What messages for an organization are sealed with."""

    def __init__(self, key: "rsa.RSAPublicKey") -> None:
        self._key = key

    @classmethod
    def from_wire(cls, text: str) -> "PublicKey":
        """Read the key as the server keeps it: base64 of PEM. Raises KeyUnreadable."""
        from node_agent.payload import ciphers

        if len(text) > _MAX_FILE:
            raise KeyUnreadable("it is too long")
        try:
            key = ciphers.load_pem_public_key(base64.b64decode(text.encode("ascii"), validate=True))
        except (ValueError, ciphers.UnsupportedAlgorithm) as error:
            raise KeyUnreadable("it is no base64 of a PEM public key") from error
        if not isinstance(key, ciphers.rsa.RSAPublicKey):
            raise KeyUnreadable("it is no RSA key")
        if not SMALLEST_KEY <= key.key_size <= LARGEST_KEY:
            raise KeyUnreadable(f"it has {key.key_size} bits; {SMALLEST_KEY} to {LARGEST_KEY} are accepted")
        return cls(key)

    @property
    def wire(self) -> str:
        """Write the key as the server keeps it."""
        from node_agent.payload import ciphers

        pem = self._key.public_bytes(ciphers.Encoding.PEM, ciphers.PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(pem).decode()

    @property
    def fingerprint(self) -> str:
        """Give a short form of the key that people can read to each other."""
        from node_agent.payload import ciphers

        der = self._key.public_bytes(ciphers.Encoding.DER, ciphers.PublicFormat.SubjectPublicKeyInfo)
        shown = hashlib.sha256(der).hexdigest()[: 2 * _SHOWN_BYTES]
        return "-".join(shown[at : at + 4] for at in range(0, len(shown), 4))

    @property
    def block_length(self) -> int:
        """Say how long what `seal_block` gives is, in bytes."""
        return (self._key.key_size + 7) // 8

    def seal_block(self, secret: bytes) -> bytes:
        """Encrypt a few bytes so that only the private key reads them."""
        from node_agent.payload import ciphers

        return self._key.encrypt(secret, ciphers.padding.PKCS1v15())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self._key.public_numbers() == other._key.public_numbers()

    def __hash__(self) -> int:
        return hash(self._key.public_numbers())

    def __repr__(self) -> str:
        return f"PublicKey({self.fingerprint})"


class PrivateKey:
    """What opens messages for this organization."""

    def __init__(self, key: "rsa.RSAPrivateKey") -> None:
        self._key = key

    @classmethod
    def load(cls, path: Path) -> "PrivateKey":
        """Read a PEM file that only the agent's user and group may read. Raises ConfigError."""
        return cls(_parsed(path, _read(path)))

    @property
    def public(self) -> PublicKey:
        """Give the part that everybody may have."""
        return PublicKey(self._key.public_key())

    def open_block(self, block: bytes) -> bytes:
        """Decrypt what `seal_block` gave. Raises ValueError, or gives noise, when it was sealed for another key."""
        from node_agent.payload import ciphers

        return self._key.decrypt(block, ciphers.padding.PKCS1v15())

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.fingerprint})"


def create_private_key(path: Path) -> PrivateKey:
    """Make a key and keep it in a new file that nobody else may read. Raises ConfigError."""
    from node_agent.payload import ciphers

    _refuse_existing(path)
    key = ciphers.rsa.generate_private_key(public_exponent=_EXPONENT, key_size=NEW_KEY)
    # the form in which vantage6's own tools write and expect it
    pem = key.private_bytes(
        ciphers.Encoding.PEM, ciphers.PrivateFormat.TraditionalOpenSSL, ciphers.NoEncryption()
    )
    try:
        _write_new(path, pem)
    except FileExistsError:
        _refuse_existing(path)
        raise
    except OSError as error:
        raise ConfigError(
            f"The private key cannot be written to {path}: {error.strerror}.",
            hint="Name a file in a folder that exists and that you may write to (--out PATH).",
        ) from error
    return PrivateKey(key)


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise ConfigError(
            f"There is a file at {path} already, and a private key is never overwritten.",
            hint="See it with `node-agent key show`, or write to another place with --out PATH.",
        )


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that was not there, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # a link, since a rename would replace what somebody put there meanwhile
        path.hardlink_to(draft)
    finally:
        draft.unlink()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_MAX_FILE + 1)
    except FileNotFoundError as error:
        raise _fault(path, "is not there", _MAKE_ONE) from error
    except OSError as error:
        raise _fault(
            path,
            f"cannot be read by user {os.geteuid()} ({error.strerror})",
            "Let the agent's user, and nobody else, read it.",
        ) from error
    if stat.S_IMODE(status.st_mode) & stat.S_IRWXO:
        raise _fault(path, "is open to every user of this machine", f"Run: chmod o= {path}")
    return content


def _parsed(path: Path, content: bytes) -> "rsa.RSAPrivateKey":
    from node_agent.payload import ciphers

    try:
        key = ciphers.load_pem_private_key(content, password=None)
    except TypeError as error:
        raise _fault(
            path,
            "is protected by a passphrase, which nobody could type for a service",
            f"Take it off: openssl rsa -in {path} -out NEW; the file's mode protects the key.",
        ) from error
    except (ValueError, ciphers.UnsupportedAlgorithm):
        # the library's words are left out: nothing may come near a log that was part of a key
        raise _fault(
            path, "holds no private key in PEM form", "Is it the right file, and not the public part?"
        ) from None
    if not isinstance(key, ciphers.rsa.RSAPrivateKey):
        raise _fault(path, "holds no RSA key, and no other kind is used here", _MAKE_ONE)
    if not SMALLEST_KEY <= key.key_size <= LARGEST_KEY:
        raise _fault(
            path,
            f"has {key.key_size} bits, and {SMALLEST_KEY} to {LARGEST_KEY} are accepted",
            _MAKE_ONE,
        )
    return key


def _fault(path: Path, what: str, todo: str) -> ConfigError:
    return ConfigError(
        f"The private key {path} (encryption.private_key) {what}.", hint=f"{todo.rstrip('.')}."
    )
