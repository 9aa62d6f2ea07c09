"""May this run here? Every rule of the policy in order, what it found, and the verdict.

Owns the order of the rules and their words. Pure: what is not known yet is named, so that whoever asked can find it out
and ask again. Whatever stays unknown never counts as allowed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain

from node_agent.domain.patterns import image_is_meant, image_matches, shown, store_matches, word_matches
from node_agent.domain.policy import (
    Combine,
    ImageName,
    Policy,
    Restriction,
    is_consumer,
    parse_image,
)

BASICS = "algorithm-basics"
"""Last part of the name of the infrastructure's own image, whatever registry or mirror it comes from."""

NAMES_NOT_TOLD = (
    "vantage6 servers do not tell nodes the names of users, so a name proves nothing: list the id"
)


class Answer(StrEnum):
    """What a rule, or the whole policy, says."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"
    """It depends on something that is not known yet."""


class Fact(StrEnum):
    """What a rule may have to know of a run, in words."""

    USER = "which user asks"
    ORGANIZATION = "which organization asks"
    ORGANIZATION_NAME = "the name of the organization that asks"
    OWN_ORGANIZATION = "which organization this node belongs to"
    DATABASES = "which databases are asked for"
    METHOD = "which method is called"
    STORE = "which algorithm store the task names"
    DIGEST = "the digest of the image that will run"
    APPROVAL = "whether the store confirms this content"


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What an algorithm store says of one image with one digest."""

    given: bool
    reason: str = ""
    """Why not, in words for the log and the researcher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a run; a fact in *unknown* is not known yet, all others are as the server or the input says."""

    image: str
    digest: str | None = None
    """What the image was pinned to."""
    user_id: int | None = None
    user_name: str | None = None
    organization_id: int | None = None
    """Who asks: for a subtask, who asked the task it belongs to."""
    organization_name: str | None = None
    own_organization_id: int | None = None
    databases: tuple[str, ...] = ()
    method: str | None = None
    store_url: str | None = None
    approval: Approval | None = None
    faults: dict[Fact, str] = field(default_factory=dict)
    """Why a fact could not be had."""
    unknown: frozenset[Fact] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule says, with the facts it still needs."""

    rule: str
    answer: Answer
    text: str
    needs: tuple[Fact, ...] = ()
    parts: tuple["Finding", ...] = ()
    """The findings this one is put together from."""

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything the rules found, in order."""

    findings: tuple[Finding, ...]

    @property
    def answer(self) -> Answer:
        """Give the answer of the rule that decided."""
        return self.decider.answer

    @property
    def decider(self) -> Finding:
        """Give the finding that decided: the first refusal, else the first open question, else the last word."""
        for answer in (Answer.NO, Answer.UNKNOWN):
            for finding in self.findings:
                if finding.answer is answer:
                    return finding
        return self.findings[-1]

    @property
    def needs(self) -> tuple[Fact, ...]:
        """Give the facts that would lead further, each once; none when the verdict stands."""
        if self.answer is not Answer.UNKNOWN:
            return ()
        return tuple(dict.fromkeys(chain.from_iterable(finding.needs for finding in self.findings)))


def has_user_names(policy: Policy) -> bool:
    """Tell whether the policy lists users by a name, which proves nothing at a server that does not tell it."""
    return bool(_names(policy.users or ()))


def judge(policy: Policy, facts: Facts) -> Verdict:
    """Let every rule of *policy* look at what is known."""
    image = parse_image(facts.image)
    if image is None:
        return Verdict((_no("image", "the image reference is not well formed"),))
    findings = (
        _yes("image", f"{image.name} is well formed"),
        *(rule(policy, facts, image) for rule in _RULES),
    )
    return Verdict(findings)


# --- findings -------------------------------------------------------------------------------------------------


def _yes(rule: str, text: str) -> Finding:
    return Finding(rule=rule, answer=Answer.YES, text=text)


def _no(rule: str, text: str) -> Finding:
    return Finding(rule=rule, answer=Answer.NO, text=text)


def _open(rule: str, *needs: Fact) -> Finding:
    text = f"depends on {' and '.join(needs)}"
    return Finding(rule=rule, answer=Answer.UNKNOWN, text=text, needs=needs)


# --- the image itself -----------------------------------------------------------------------------------------


def _basics(policy: Policy, _facts: Facts, image: ImageName) -> Finding:
    rule = "policy.basics_algorithm"
    if policy.basics_algorithm:
        return _yes(rule, "true: such an image is judged like every other")
    if image.name.rpartition("/")[2].lower() == BASICS:
        return _no(rule, f"false: the image {BASICS} does not run here")
    return _yes(rule, f"false, but this is not the image {BASICS}")


# --- who asks -------------------------------------------------------------------------------------------------


def _users(policy: Policy, facts: Facts, _image: ImageName) -> Finding:
    rule, listed = "policy.users", policy.users
    known = _listed(rule, listed, facts.user_id, facts.user_name)
    if known is not None or listed is None:
        return known or _yes(rule, "not set: every user")
    if Fact.USER in facts.unknown and _has_ids(listed):
        return _open(rule, Fact.USER)
    who = _not_listed(facts)
    if facts.user_name is None and _names(listed):
        return _no(rule, f"{who}; the names in the list do not count: {NAMES_NOT_TOLD}")
    return _no(rule, who)


def _not_listed(facts: Facts) -> str:
    if facts.user_name is not None and is_consumer(facts.user_name):
        return f"{facts.user_name} is not listed"
    return "the task names no user" if facts.user_id is None else f"user {facts.user_id} is not listed"


def _organizations(policy: Policy, facts: Facts, _image: ImageName) -> Finding:
    rule, listed = "policy.organizations", policy.organizations
    known = _listed(rule, listed, facts.organization_id, facts.organization_name)
    if known is not None or listed is None:
        return known or _yes(rule, "not set: every organization")
    if Fact.ORGANIZATION in facts.unknown and (_has_ids(listed) or Fact.ORGANIZATION_NAME in facts.unknown):
        return _open(rule, Fact.ORGANIZATION)
    if Fact.ORGANIZATION_NAME in facts.unknown and _names(listed):
        return _open(rule, Fact.ORGANIZATION_NAME)
    return _no(rule, f"{_asking(facts)} is not listed{_because(facts, Fact.ORGANIZATION)}")


def _own_organization(policy: Policy, facts: Facts, _image: ImageName) -> Finding:
    rule = "policy.own_organization_only"
    if not policy.own_organization_only:
        return _yes(rule, "false: other organizations may ask")
    for fact in (Fact.ORGANIZATION, Fact.OWN_ORGANIZATION):
        if fact in facts.unknown:
            return _open(rule, fact)
    if facts.organization_id is not None and facts.organization_id == facts.own_organization_id:
        return _yes(rule, "this node's own organization asks")
    because = _because(facts, Fact.ORGANIZATION)
    return _no(rule, f"{_asking(facts)} is not the one this node belongs to{because}")


def _listed(
    rule: str, listed: Sequence[int | str] | None, number: int | None, name: str | None
) -> Finding | None:
    """Find who asks in a list of ids and names; None when the list exists and does not show them."""
    if listed is None:
        return None
    if not listed:
        return _no(rule, "the list is empty, so nobody may ask")
    for entry in listed:
        # `True` equals 1, and an id never equals a name
        if type(entry) is type(number) and entry == number:
            return _yes(rule, f"{number} is listed")
        if isinstance(entry, str) and entry == name:
            return _yes(rule, f"{shown(entry)} is listed")
    return None


def _has_ids(listed: Sequence[int | str]) -> bool:
    return any(isinstance(entry, int) for entry in listed)


def _names(listed: Sequence[int | str]) -> list[str]:
    """Give the names of a list; the address of a consumer is proven by a signature, and is none."""
    return [entry for entry in listed if isinstance(entry, str) and not is_consumer(entry)]


def _asking(facts: Facts) -> str:
    if facts.organization_id is not None:
        return f"organization {facts.organization_id}"
    if facts.organization_name is not None:
        return f"organization {shown(facts.organization_name)}"
    return "the organization that asks (the task names none)"


def _because(facts: Facts, fact: Fact) -> str:
    return f" ({facts.faults[fact]})" if fact in facts.faults else ""


# --- what is asked --------------------------------------------------------------------------------------------


def _restrictions(policy: Policy, facts: Facts, image: ImageName) -> Finding:
    parts = tuple(
        finding
        for number, restriction in enumerate(policy.restrictions)
        if image_is_meant(restriction.image, image.name)
        for finding in _restricted(f"policy.restrict[{number}]", restriction, facts)
    )
    if not parts:
        return _yes("policy.restrict", "no restriction means this image")
    decider = Verdict(parts).decider
    if decider.answer is Answer.YES:
        return Finding(
            rule="policy.restrict", answer=Answer.YES, text="every restriction is kept", parts=parts
        )
    needs = Verdict(parts).needs
    return Finding(rule=decider.rule, answer=decider.answer, text=decider.text, needs=needs, parts=parts)


def _restricted(rule: str, restriction: Restriction, facts: Facts) -> Iterator[Finding]:
    if restriction.databases is not None:
        yield _databases(f"{rule}.databases", restriction.databases, facts)
    if restriction.methods is not None:
        yield _method(f"{rule}.methods", restriction.methods, facts)


def _databases(rule: str, patterns: Sequence[str], facts: Facts) -> Finding:
    if Fact.DATABASES in facts.unknown:
        return _open(rule, Fact.DATABASES)
    for label in facts.databases:
        if not word_matches(patterns, label):
            return _no(rule, f"the database {shown(label)} is not one this image may read")
    return _yes(rule, "every database asked for may be read")


def _method(rule: str, patterns: Sequence[str], facts: Facts) -> Finding:
    if not patterns:
        return _no(rule, "the list is empty, so no method of this image may be called")
    if Fact.METHOD in facts.unknown:
        return _open(rule, Fact.METHOD)
    if facts.method is None:
        return _no(rule, f"the method cannot be told{_because(facts, Fact.METHOD)}")
    if word_matches(patterns, facts.method):
        return _yes(rule, f"the method {shown(facts.method)} may be called")
    return _no(rule, f"the method {shown(facts.method)} of this image may not be called")


# --- where the algorithm is from ------------------------------------------------------------------------------


def _source(policy: Policy, facts: Facts, image: ImageName) -> Finding:
    parts = tuple(_sources(policy, facts, image))
    if not parts:
        return _no(
            "policy.algorithms", "not set, and policy.algorithm_stores is not either, so nothing runs here"
        )
    if len(parts) == 1:
        return parts[0]
    return _either(parts) if policy.combine is Combine.EITHER else _both(parts)


def _sources(policy: Policy, facts: Facts, image: ImageName) -> Iterator[Finding]:
    if policy.algorithms is not None:
        yield _algorithms(policy.algorithms, facts, image)
    if policy.stores is not None:
        yield _stores(policy.stores, facts, image)


def _both(parts: tuple[Finding, ...]) -> Finding:
    verdict = Verdict(parts)
    if verdict.answer is Answer.YES:
        text = f"both allow it: {'; '.join(str(part) for part in parts)}"
        return Finding(rule="policy.combine: both", answer=Answer.YES, text=text, parts=parts)
    decider = verdict.decider
    return Finding(
        rule=decider.rule, answer=decider.answer, text=decider.text, needs=verdict.needs, parts=parts
    )


def _either(parts: tuple[Finding, ...]) -> Finding:
    for part in parts:
        if part.answer is Answer.YES:
            return Finding(rule=part.rule, answer=Answer.YES, text=part.text, parts=parts)
    needs = tuple(dict.fromkeys(chain.from_iterable(part.needs for part in parts)))
    answer = Answer.UNKNOWN if needs else Answer.NO
    text = "; ".join(str(part) for part in parts)
    return Finding(rule="policy.combine: either", answer=answer, text=text, needs=needs, parts=parts)


def _algorithms(rules: Sequence[str], facts: Facts, image: ImageName) -> Finding:
    rule = "policy.algorithms"
    if not rules:
        return _no(rule, "the list is empty, so no image is allowed")
    for pattern in rules:
        if "@" not in pattern and image_matches(pattern, image.name):
            return _yes(rule, pattern)
    exact = [pattern for pattern in rules if image_matches(pattern.partition("@")[0], image.name)]
    if not exact:
        return _no(rule, "no entry names this image")
    return _content(exact, facts, image)


def _content(exact: Sequence[str], facts: Facts, image: ImageName) -> Finding:
    """Compare the content with rules that name the image and a digest."""
    rule, digest = "policy.algorithms", facts.digest or image.digest
    if digest is None and Fact.DIGEST in facts.unknown:
        return _open(rule, Fact.DIGEST)
    for pattern in exact:
        if pattern.partition("@")[2] == digest:
            return _yes(rule, pattern)
    return _no(rule, f"the content of the image is not the one allowed by {exact[0]}")


def _stores(patterns: Sequence[str], facts: Facts, image: ImageName) -> Finding:
    rule = "policy.algorithm_stores"
    if not patterns:
        return _no(rule, "the list is empty, so no store is allowed")
    if Fact.STORE in facts.unknown:
        return _open(rule, Fact.STORE)
    if facts.store_url is None:
        return _no(rule, f"the task names no algorithm store{_because(facts, Fact.STORE)}")
    for pattern in patterns:
        if store_matches(pattern, facts.store_url):
            return _confirmed(pattern, facts, image)
    return _no(rule, f"no entry names the store {shown(facts.store_url)}")


def _confirmed(pattern: str, facts: Facts, image: ImageName) -> Finding:
    """Judge by what an allowed store says of the content."""
    rule, store = "policy.algorithm_stores", shown(facts.store_url or "")
    if facts.digest is None and image.digest is None:
        if Fact.DIGEST in facts.unknown:
            return _open(rule, Fact.DIGEST)
        return _no(rule, f"the image has no digest of a registry that {store} could confirm")
    if Fact.APPROVAL in facts.unknown:
        return _open(rule, Fact.APPROVAL)
    if facts.approval is None or not facts.approval.given:
        why = facts.approval.reason if facts.approval is not None else "it was not asked"
        return _no(rule, f"{store} does not confirm this content: {why}")
    return _yes(rule, f"{pattern}, and {store} confirms this content")


_Rule = Callable[[Policy, Facts, ImageName], Finding]
_RULES: tuple[_Rule, ...] = (
    _basics,
    _users,
    _organizations,
    _own_organization,
    _restrictions,
    _source,
)
"""Every rule must agree; the first that refuses is the one named. What costs a question to others comes last."""
