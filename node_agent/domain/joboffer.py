"""What the owner offers to consumers of the compute API: how they are let in, and the words for it."""

from enum import StrEnum


class AccessKind(StrEnum):
    """Who decides whether a consumer may use a data set."""

    DENY = "deny"
    ADDRESSES = "addresses"
    GRANTS = "grants"
    COMMAND = "command"
    CALLBACK = "callback"
