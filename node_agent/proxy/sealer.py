"""What is done to payloads on their way through the proxy: the seam for encrypted collaborations.

Algorithms always see plain payloads in base64. A sealer turns them into what travels and back. Knows nothing of
routes, tokens or runs.
"""

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from typing import Protocol


class Sealer(Protocol):
    """Turns what algorithms write into what the server keeps, and back."""

    def seal_inputs(self, body: bytes) -> bytes:
        """Make the inputs in the body of a new task ready to travel."""

    def open_results(self, body: bytes) -> bytes:
        """Make the results in an answer (one, or a page of them) readable for the algorithm."""

    def seal_blob(self, content: bytes) -> bytes:
        """Make one payload ready for the blob store."""

    def open_blob(self, content: bytes) -> bytes:
        """Make what the blob store keeps readable."""


class PlainSealer:
    """The sealer of an unencrypted collaboration: base64 is all there is."""

    def seal_inputs(self, body: bytes) -> bytes:
        """Leave the inputs as they are."""
        return body

    def open_results(self, body: bytes) -> bytes:
        """Leave the results as they are."""
        return body

    def seal_blob(self, content: bytes) -> bytes:
        """Write the payload as base64 text, as every reader of the blob store expects."""
        return b64encode(content)

    def open_blob(self, content: bytes) -> bytes:
        """Read base64 text; what is not base64 passes unchanged."""
        try:
            return b64decode(content, validate=True)
        except NotBase64:
            return content
