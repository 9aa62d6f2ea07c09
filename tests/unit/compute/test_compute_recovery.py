"""Recovery of public keys: every way to them gives the same key, and none for what is no signature."""

import random
from collections.abc import Callable
from importlib.util import find_spec

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256

from node_agent.compute.recovery import key_by_arithmetic, key_by_coincurve, recovered_key

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
GENERATOR_X = 0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798
X_OF_NO_POINT = 5
MESSAGE = bytes(range(32))
# coincurve has no build for the newest Python
WAYS = [recovered_key, key_by_arithmetic, *([key_by_coincurve] if find_spec("coincurve") else [])]

Way = Callable[[bytes, bytes], bytes | None]


def signature(r: int, s: int, parity: int = 0) -> bytes:
    return r.to_bytes(32) + s.to_bytes(32) + bytes([parity])


@pytest.mark.parametrize("way", WAYS)
def test_the_key_that_signed_is_one_of_the_two_that_are_found(way: Way) -> None:
    chance = random.Random(7)
    for _ in range(20):
        message, private = (
            chance.randbytes(32),
            ec.derive_private_key(chance.randrange(1, ORDER), ec.SECP256K1()),
        )
        r, s = utils.decode_dss_signature(private.sign(message, ec.ECDSA(utils.Prehashed(SHA256()))))
        public = private.public_key().public_numbers()
        own = public.x.to_bytes(32) + public.y.to_bytes(32)
        found = [way(message, signature(r, s, parity)) for parity in (0, 1)]
        mirrored = [way(message, signature(r, ORDER - s, parity)) for parity in (1, 0)]
        assert found.count(own) == 1
        assert mirrored == found


@pytest.mark.parametrize("way", WAYS)
def test_a_key_of_small_numbers_is_the_known_one(way: Way) -> None:
    # the nonce is 1, so that r is the generator's x; with s = r + z the private key is 1, and so is the public one
    z = int.from_bytes(MESSAGE)
    found = way(MESSAGE, signature(GENERATOR_X, (GENERATOR_X + z) % ORDER))
    assert found is not None
    assert int.from_bytes(found[:32]) == GENERATOR_X


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "wrong",
    [
        signature(0, 1),
        signature(1, 0),
        signature(ORDER, 1),
        signature(1, ORDER),
        signature(2**256 - 1, 2**256 - 1),
        signature(X_OF_NO_POINT, 1),
        # the key would be the point at infinity
        signature(GENERATOR_X, int.from_bytes(MESSAGE)),
    ],
)
def test_what_is_no_signature_gives_no_key(way: Way, wrong: bytes) -> None:
    assert way(MESSAGE, wrong) is None
