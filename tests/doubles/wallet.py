"""A consumer's key pair, as wallets use one: signs what the compute API wants signed."""

from coincurve import PrivateKey

from node_agent.compute.signatures import Address, address_of_key, keccak, shown_address

_PREFIX = b"\x19Ethereum Signed Message:\n32"


class Wallet:
    """One key; *seed* makes it the same in every process."""

    def __init__(self, seed: int = 0x11) -> None:
        self._key = PrivateKey(bytes([seed]) * 32)
        self.address: Address = address_of_key(self._key.public_key.format(compressed=False)[1:])

    @property
    def shown(self) -> str:
        """Give the address with its checksum's capitals."""
        return shown_address(self.address)

    def sign(self, text: str, *, offset: int = 27) -> str:
        """Sign a text; *offset* is what `v` is counted from."""
        message = keccak(_PREFIX + keccak(text.encode()))
        raw = self._key.sign_recoverable(message, hasher=None)
        return "0x" + raw[:64].hex() + f"{raw[64] + offset:02x}"
