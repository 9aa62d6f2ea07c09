"""The owner's rules as values, and image references taken apart.

An image reference has three parts: the name (with its registry), an optional tag, an optional digest. Rules are globs
over the whole name, or `name@sha256:…` for exactly one content. How the rules decide stands in verdict.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from node_agent.domain.container import Relaxation
from node_agent.domain.patterns import image_matches

DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_CONSUMER = re.compile(r"0x[0-9a-f]{40}\Z")
_REFERENCE = re.compile(
    # a part begins and ends with a letter or digit: `..` would be a way around a rule
    r"(?P<name>[A-Za-z0-9]+(?:[._\-]+[A-Za-z0-9]+)*(?::[0-9]+(?=/))?(?:/[a-z0-9]+(?:[._\-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?\Z"
)


@dataclass(frozen=True, slots=True)
class ImageName:
    """An image reference taken apart."""

    name: str
    tag: str | None = None
    digest: str | None = None


def parse_image(reference: str) -> ImageName | None:
    """Take an image reference apart; None when it is not one."""
    match = _REFERENCE.match(reference) if len(reference) <= 512 else None  # noqa: PLR2004 - longer than any real one
    if match is None:
        return None
    return ImageName(name=match["name"], tag=match["tag"], digest=match["digest"])


class Combine(StrEnum):
    """What it takes when both the list of algorithms and the list of stores are configured."""

    BOTH = "both"
    EITHER = "either"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restriction:
    """What the images of one pattern may be asked; None restricts nothing, an empty list allows nothing."""

    image: str
    methods: tuple[str, ...] | None = None
    databases: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The owner's rules. A list that is None is not configured; an empty one allows nothing and nobody."""

    algorithms: tuple[str, ...] | None = None
    stores: tuple[str, ...] | None = None
    combine: Combine = Combine.BOTH
    users: tuple[int | str, ...] | None = None
    organizations: tuple[int | str, ...] | None = None
    """Ids as numbers, everything else as names; a number in quotes was made an id when it was read."""
    own_organization_only: bool = False
    basics_algorithm: bool = True
    restrictions: tuple[Restriction, ...] = ()


def is_consumer(entry: int | str) -> bool:
    """Tell whether an entry of the list of users is the address of a consumer of the compute API, in lower case."""
    return isinstance(entry, str) and _CONSUMER.match(entry) is not None


def shared(policy: Policy, *, own_organization_id: int) -> dict[str, object]:
    """Say what the server may know of the policy, in its words: it then refuses tasks of others itself.

    The server takes only ids of users, and fails on every task for this node when it finds anything else there.
    """
    told: dict[str, object] = {"allowed_algorithms": _shared_algorithms(policy)}
    if policy.stores is not None:
        told["allowed_algorithm_stores"] = list(policy.stores)
    users = None if policy.users is None else [entry for entry in policy.users if not is_consumer(entry)]
    if users is not None and all(isinstance(entry, int) for entry in users):
        told["allowed_users"] = [str(entry) for entry in users]
    if policy.own_organization_only:
        told["allowed_orgs"] = [str(own_organization_id)]
    elif policy.organizations is not None:
        told["allowed_orgs"] = [str(entry) for entry in policy.organizations]
    return told


def _shared_algorithms(policy: Policy) -> object:
    listed = policy.algorithms or ()
    return "all" if "*" in listed else list(listed)


def matching_relaxation(reference: str, relaxations: Sequence[Relaxation]) -> Relaxation:
    """Find what the owner gives back to this image; the first pattern that matches the whole name counts."""
    image = parse_image(reference)
    for relaxation in relaxations:
        if image is not None and image_matches(relaxation.image, image.name):
            return relaxation
    return Relaxation(image="")
