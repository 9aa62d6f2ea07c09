"""A consumer's key pair, as wallets use one: signs what the compute API wants signed."""

from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256

from node_agent.compute.signatures import Address, address_of_key, keccak, shown_address, signer_of

_PREFIX = b"\x19Ethereum Signed Message:\n32"
_ORDER_OF_THE_CURVE = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


class Wallet:
    """One key; *seed* makes it the same in every process."""

    def __init__(self, seed: int = 0x11) -> None:
        self._key = ec.derive_private_key(int.from_bytes(bytes([seed]) * 32), ec.SECP256K1())
        public = self._key.public_key().public_numbers()
        self.address: Address = address_of_key(public.x.to_bytes(32) + public.y.to_bytes(32))

    @property
    def shown(self) -> str:
        """Give the address with its checksum's capitals."""
        return shown_address(self.address)

    def sign(self, text: str, *, offset: int = 27) -> str:
        """Sign a text; *offset* is what `v` is counted from."""
        message = keccak(_PREFIX + keccak(text.encode()))
        way = ec.ECDSA(utils.Prehashed(SHA256()), deterministic_signing=True)
        r, s = utils.decode_dss_signature(self._key.sign(message, way))
        # of the two mirror images wallets write the smaller one
        halves = "0x" + r.to_bytes(32).hex() + min(s, _ORDER_OF_THE_CURVE - s).to_bytes(32).hex()
        (parity,) = (v for v in (0, 1) if signer_of(text, f"{halves}{v:02x}") == self.address)
        return f"{halves}{parity + offset:02x}"
