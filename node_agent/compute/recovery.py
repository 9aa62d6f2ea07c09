"""Recovery of the public key that made a signature on the curve secp256k1.

Owns two ways to the same key: coincurve, where it is installed, and arithmetic on whole numbers, some milliseconds a
signature, for the versions of Python that coincurve has no build for. Nothing here is secret, so nothing has to take
constant time. Must not know what was signed or what a key is good for.

The arithmetic decides nothing on its own: the key it finds counts only if OpenSSL verifies the signature with it.
"""

from importlib.util import find_spec
from typing import Final, NamedTuple

PUBLIC_KEY_SIZE: Final = 64
_HALF: Final = 32
_P: Final = 2**256 - 2**32 - 977
"""The field's prime."""
_N: Final = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
"""The number of points."""
_B: Final = 7
"""The curve is y² = x³ + 7."""


class _Point(NamedTuple):
    """A point in Jacobian coordinates, (x / z², y / z³); z is 0 for the point at infinity."""

    x: int
    y: int
    z: int = 1


_INFINITY: Final = _Point(1, 1, 0)
_GENERATOR: Final = _Point(
    0x79BE667E_F9DCBBAC_55A06295_CE870B07_029BFCDB_2DCE28D9_59F2815B_16F81798,
    0x483ADA77_26A3C465_5DA4FBFC_0E1108A8_FD17B448_A6855419_9C47D08F_FB10D4B8,
)


def recovered_key(message: bytes, signature: bytes) -> bytes | None:
    """Return the public key (64 bytes: x, y) that signed the 32 bytes *message*; None when there is none.

    *signature* is 65 bytes: r, s, and 0 or 1 for the parity of the point that r comes from.
    """
    recover = key_by_arithmetic if find_spec("coincurve") is None else key_by_coincurve
    return recover(message, signature)


def key_by_coincurve(message: bytes, signature: bytes) -> bytes | None:
    """Return the same as `recovered_key`, computed by coincurve."""
    from coincurve import PublicKey

    try:
        key = PublicKey.from_signature_and_message(signature, message, hasher=None)
    except ValueError:
        return None
    except Exception:  # noqa: BLE001 - the library raises a bare exception
        return None
    return key.format(compressed=False)[-PUBLIC_KEY_SIZE:]


def key_by_arithmetic(message: bytes, signature: bytes) -> bytes | None:
    """Return the same as `recovered_key`, computed here."""
    r, s = int.from_bytes(signature[:_HALF]), int.from_bytes(signature[_HALF : 2 * _HALF])
    if not (0 < r < _N and 0 < s < _N):
        return None
    nonce_point = _with_x(r, parity=signature[2 * _HALF])
    if nonce_point is None:
        return None
    inverse = pow(r, -1, _N)
    found = _combined(-int.from_bytes(message) * inverse % _N, _GENERATOR, s * inverse % _N, nonce_point)
    if found.z == 0:
        return None
    x, y = _affine(found)
    return x.to_bytes(_HALF) + y.to_bytes(_HALF) if _is_verified(x, y, message, r, s) else None


def _with_x(x: int, *, parity: int) -> _Point | None:
    square = (pow(x, 3, _P) + _B) % _P
    y = pow(square, (_P + 1) // 4, _P)
    if y * y % _P != square:
        return None
    return _Point(x, y if y % 2 == parity else _P - y)


def _is_verified(x: int, y: int, message: bytes, r: int, s: int) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, utils
    from cryptography.hazmat.primitives.hashes import SHA256

    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256K1()).public_key()
    try:
        # of the hash only the length counts here: the message is one already
        key.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(utils.Prehashed(SHA256())))
    except InvalidSignature:
        return False
    return True


def _combined(a: int, first: _Point, b: int, second: _Point) -> _Point:
    """Return a · first + b · second, reading both numbers bit by bit at once."""
    terms = (_INFINITY, first, second, _added(first, second))
    total = _INFINITY
    for bit in reversed(range(_N.bit_length())):
        total = _doubled(total)
        total = _added(total, terms[(a >> bit & 1) | (b >> bit & 1) << 1])
    return total


def _doubled(point: _Point) -> _Point:
    square = point.y * point.y % _P
    middle = 4 * point.x * square % _P
    slope = 3 * point.x * point.x % _P
    x = (slope * slope - 2 * middle) % _P
    return _Point(x, (slope * (middle - x) - 8 * square * square) % _P, 2 * point.y * point.z % _P)


def _added(one: _Point, other: _Point) -> _Point:
    if one.z == 0 or other.z == 0:
        return other if one.z == 0 else one
    one_square, other_square = one.z * one.z % _P, other.z * other.z % _P
    one_x, other_x = one.x * other_square % _P, other.x * one_square % _P
    one_y, other_y = one.y * other_square * other.z % _P, other.y * one_square * one.z % _P
    if one_x == other_x:
        return _doubled(one) if one_y == other_y else _INFINITY
    run, rise = other_x - one_x, other_y - one_y
    square = run * run % _P
    cube, middle = square * run % _P, one_x * square % _P
    x = (rise * rise - cube - 2 * middle) % _P
    return _Point(x, (rise * (middle - x) - one_y * cube) % _P, run * one.z * other.z % _P)


def _affine(point: _Point) -> tuple[int, int]:
    inverse = pow(point.z, -1, _P)
    square = inverse * inverse % _P
    return point.x * square % _P, point.y * square * inverse % _P
