"""The stricter signature: one header that covers the whole request, for those who want it.

    Signed-Body: sha256=<hash of the body>, signature=<signature>

What is signed has a mark between its parts and names the node, so that it is good for this one request to this one node.
Knows nothing of fields or nonces but that they stand in the text. The form is described in docs/compute-api.md.
"""

import hmac
import re
from dataclasses import dataclass, field
from hashlib import sha256

from node_agent.compute.signatures import Address

HEADER = "Signed-Body"
_FIRST_LINE = "node-agent signed-body 1"
_VALUE = re.compile(r"sha256=(?P<hash>[0-9a-f]{64}), ?signature=(?P<signature>0x[0-9a-fA-F]{130})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request as it arrived."""

    method: str
    target: str
    """Path and query, not decoded."""
    body: bytes = field(repr=False)
    token: str = field(default="", repr=False)
    """Empty when there is none."""
    signed_body: str | None = field(default=None, repr=False)
    """The header of the stricter signature."""


def signed_text(sent: Sent, *, node: Address, asker: Address, nonce: int) -> str:
    """Give the text to be signed."""
    lines = (_FIRST_LINE, sent.method, sent.target, sha256(sent.body).hexdigest(), node, asker, str(nonce))
    return "\n".join(lines)


def body_signature(sent: Sent) -> str | None:
    """Give the signature in the header; None when it is misshapen or the body is another one."""
    match = _VALUE.match(sent.signed_body or "")
    if match is None or not hmac.compare_digest(match["hash"], sha256(sent.body).hexdigest()):
        return None
    return match["signature"]
