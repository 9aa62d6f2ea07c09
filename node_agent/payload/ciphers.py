"""The names of the cryptographic library that sealing needs, in one place that is loaded late.

The library takes eight megabytes, and only encrypted collaborations need it: import this module within functions.
"""

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

__all__ = [
    "Cipher",
    "CipherContext",
    "Encoding",
    "NoEncryption",
    "PrivateFormat",
    "PublicFormat",
    "UnsupportedAlgorithm",
    "algorithms",
    "load_pem_private_key",
    "load_pem_public_key",
    "modes",
    "padding",
    "rsa",
]
