"""May this run here? The owner's rules and the verdict, always with the rule that decided.

An image reference has three parts: the name (with its registry), an optional tag, an optional digest. Rules are globs
over the whole name, or `name@sha256:…` for exactly one content. Nothing listed means nothing runs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from node_agent.domain.container import Relaxation

DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
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


class Answer(StrEnum):
    """What a policy says of an image."""

    YES = "yes"
    NO = "no"
    DEPENDS_ON_DIGEST = "depends on digest"
    """Only rules with a digest name this image: ask again when the digest is known."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer and the rule that gave it, in words for the log and the researcher."""

    answer: Answer
    rule: str


def judge_image(reference: str, rules: Sequence[str], *, digest: str | None = None) -> Verdict:
    """Decide whether *reference* may run under *rules*; *digest* is what it was pinned to, once known."""
    image = parse_image(reference)
    if image is None:
        return Verdict(Answer.NO, "the image reference is not well formed")
    if not rules:
        return Verdict(Answer.NO, "no algorithm is allowed on this node (policy.algorithms is empty)")
    for rule in rules:
        if "@" not in rule and fnmatchcase(image.name, rule):
            return Verdict(Answer.YES, f"policy.algorithms: {rule}")
    return _judge_digest(image, rules, digest=digest or image.digest)


def _judge_digest(image: ImageName, rules: Sequence[str], *, digest: str | None) -> Verdict:
    exact = [rule for rule in rules if "@" in rule and fnmatchcase(image.name, rule.partition("@")[0])]
    if not exact:
        return Verdict(Answer.NO, "no rule of policy.algorithms names this image")
    if digest is None:
        return Verdict(Answer.DEPENDS_ON_DIGEST, f"policy.algorithms: {exact[0]}")
    for rule in exact:
        if rule.partition("@")[2] == digest:
            return Verdict(Answer.YES, f"policy.algorithms: {rule}")
    return Verdict(Answer.NO, f"the content of the image is not the one allowed by {exact[0]}")


def matching_relaxation(reference: str, relaxations: Sequence[Relaxation]) -> Relaxation:
    """Find what the owner gives back to this image; the first pattern that matches the whole name counts."""
    image = parse_image(reference)
    for relaxation in relaxations:
        if image is not None and fnmatchcase(image.name, relaxation.image):
            return relaxation
    return Relaxation(image="")
