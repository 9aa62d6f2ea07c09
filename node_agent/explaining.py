"""What the policy would say of a task: every rule in order, and the verdict.

Owns how a question from the command line becomes facts, and how the findings are shown. Pure: it asks no server, no store
and no registry, and says what it therefore does not know. Must not decide; domain/verdict.py does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from node_agent.domain.policy import Policy, is_consumer
from node_agent.domain.verdict import NAMES_NOT_TOLD, Answer, Fact, Facts, Finding, Verdict, judge

VERDICTS: Final[Mapping[Answer, str]] = MappingProxyType(
    {Answer.YES: "allowed", Answer.NO: "refused", Answer.UNKNOWN: "unknown"}
)
_MARKS: Final[Mapping[Answer, str]] = MappingProxyType({Answer.YES: "✓", Answer.NO: "✗", Answer.UNKNOWN: "?"})
_OPTIONS: Final[Mapping[Fact, str]] = MappingProxyType(
    {
        Fact.USER: "--user ID",
        Fact.ORGANIZATION: "--organization ID",
        Fact.ORGANIZATION_NAME: "--organization NAME",
        Fact.OWN_ORGANIZATION: "--own-organization ID",
        Fact.DATABASES: "--database LABEL",
        Fact.METHOD: "--method NAME",
        Fact.STORE: "--store URL",
        Fact.DIGEST: "--digest sha256:…",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is known of a task that somebody thinks of; None: not known."""

    image: str
    digest: str | None = None
    user: str | None = None
    organization: str | None = None
    own_organization: int | None = None
    method: str | None = None
    databases: tuple[str, ...] | None = None
    store: str | None = None


def explain(policy: Policy, question: Question) -> Verdict:
    """Let every rule look at what is known of a task."""
    verdict = judge(policy, _facts(question))
    by_name = _number(question.user) is None and _address(question.user) is None
    if question.user is None or not by_name or policy.users is None:
        return verdict
    return Verdict(tuple(_doubted(finding) for finding in verdict.findings))


def _address(user: str | None) -> str | None:
    """Give the address of a consumer of the compute API; None when it is none."""
    return user.lower() if user is not None and is_consumer(user.lower()) else None


def _doubted(finding: Finding) -> Finding:
    """Say of a user who was found by name that a node will most likely not learn this name."""
    if finding.rule != "policy.users" or finding.answer is not Answer.YES:
        return finding
    return replace(finding, answer=Answer.UNKNOWN, text=f"{finding.text} by name, but {NAMES_NOT_TOLD}")


def _facts(question: Question) -> Facts:
    user, organization = _number(question.user), _number(question.organization)
    address = _address(question.user)
    known = {
        # who has an address has no number that could be asked for
        Fact.USER: user if address is None else address,
        Fact.ORGANIZATION: organization,
        Fact.ORGANIZATION_NAME: question.organization if organization is None else None,
        Fact.OWN_ORGANIZATION: question.own_organization,
        Fact.DATABASES: question.databases,
        Fact.METHOD: question.method,
        Fact.STORE: question.store,
        Fact.DIGEST: question.digest,
        Fact.APPROVAL: None,
    }
    return Facts(
        image=question.image,
        digest=question.digest,
        user_id=user,
        user_name=address or (question.user if user is None else None),
        organization_id=organization,
        organization_name=question.organization if organization is None else None,
        own_organization_id=question.own_organization,
        databases=question.databases or (),
        method=question.method,
        store_url=question.store,
        unknown=frozenset(fact for fact, value in known.items() if value is None),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


# --- showing ----------------------------------------------------------------------------------------------------


def as_dict(verdict: Verdict, question: Question) -> dict[str, Any]:
    """Give the answer for another program."""
    return {
        "verdict": VERDICTS[verdict.answer],
        "image": question.image,
        "rule": verdict.decider.rule,
        "reason": verdict.decider.text,
        "unknown": [str(fact) for fact in verdict.needs],
        "findings": [_finding_dict(finding) for finding in verdict.findings],
    }


def _finding_dict(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "answer": str(finding.answer),
        "text": finding.text,
        "parts": [_finding_dict(part) for part in finding.parts],
    }


def lines(verdict: Verdict) -> Iterator[str]:
    """Give the answer for people: a line for each rule, then the verdict."""
    for finding in verdict.findings:
        yield f"{_MARKS[finding.answer]} {finding}"
        yield from (f"    {_MARKS[part.answer]} {part}" for part in finding.parts)
    yield f"{VERDICTS[verdict.answer].capitalize()}: {verdict.decider}"
    options = [_OPTIONS[fact] for fact in verdict.needs if fact in _OPTIONS]
    if options:
        yield f"→ Say more with {', '.join(options)}."
    if Fact.APPROVAL in verdict.needs:
        yield "→ The store itself is asked when a run arrives, not by this command."
