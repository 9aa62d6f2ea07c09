"""Who signed a text: the one signature scheme of the compute API.

The text's keccak-256 hash is signed as a personal message over its 32 bytes; the signature is 65 bytes in hexadecimal,
`r`, `s` and `v`. Both usual counts of `v` (0/1 and 27/28) and both mirror images of `s` are read: a signature is proof
of who asks, never a mark of what was asked before.

The libraries behind it come with the extra `compute`, so they are imported by who calls, not by who imports.
"""

import re
from typing import NewType

from node_agent.compute.recovery import recovered_key

Address = NewType("Address", str)
"""An account: 0x and 40 hexadecimal digits, in lower case."""

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z")
_SIGNATURE = re.compile(r"(?:0x)?([0-9a-fA-F]{130})\Z")
_PREFIX = b"\x19Ethereum Signed Message:\n32"
_V_OFFSET = 27


def parse_address(text: object) -> Address | None:
    """Read an address in any capitals; None when it is none."""
    return Address(text.lower()) if isinstance(text, str) and _ADDRESS.match(text) else None


def shown_address(address: Address) -> str:
    """Write an address with the capitals that serve wallets as its checksum."""
    digits = address[2:]
    marks = keccak(digits.encode()).hex()
    return "0x" + "".join(
        digit.upper() if int(mark, 16) >= 8 else digit  # noqa: PLR2004 - the upper half of a hexadecimal digit
        for digit, mark in zip(digits, marks, strict=False)
    )


def signer_of(text: str, signature: str) -> Address | None:
    """Find who signed *text*; None when the signature is none."""
    match = _SIGNATURE.match(signature)
    if match is None:
        return None
    raw = bytes.fromhex(match[1])
    recovery = raw[64] - _V_OFFSET if raw[64] >= _V_OFFSET else raw[64]
    if recovery not in {0, 1}:
        return None
    hashed = keccak(_PREFIX + keccak(text.encode(errors="replace")))
    key = recovered_key(hashed, raw[:64] + bytes([recovery]))
    return None if key is None else address_of_key(key)


def address_of_key(public_key: bytes) -> Address:
    """Give the address of a public key, the 64 bytes of its coordinates."""
    return Address("0x" + keccak(public_key)[-20:].hex())


def keccak(content: bytes) -> bytes:
    """Hash as wallets do: keccak-256 with the padding it had before it became a standard."""
    from Crypto.Hash import keccak as hashes

    return hashes.new(data=content, digest_bits=256).digest()
