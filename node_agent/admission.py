"""What the policy has to know of a run, and where that is found out.

Asks only what the policy needs for this run, the cheapest first, and nothing any more once a rule has refused. Must not
know how a rule decides: domain/verdict.py does.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from node_agent.domain.policy import Policy, parse_image
from node_agent.domain.ports import Clock, Origin, RunFolders, Stores
from node_agent.domain.run import Run
from node_agent.domain.task import OrganizationId, Task
from node_agent.domain.verdict import Answer, Fact, Facts, Verdict, judge
from node_agent.errors import InputChanged, NotAllowed
from node_agent.inputs import ensure_input
from node_agent.runlog import log_of

METHOD_LIMIT = 16 * 1024 * 1024
"""The largest input that is looked into for its method; a larger one is refused when a rule needs the method."""
DEEPEST = 20
"""How many tasks a subtask is followed back through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The policy of this node and those who know what it asks for."""

    policy: Policy
    own_organization_id: OrganizationId
    server: Origin
    stores: Stores
    folders: RunFolders
    clock: Clock

    def admit(self, run: Run) -> None:
        """Refuse what can be refused before there is an image. Raises NotAllowed, Transient."""
        verdict = self._judge(run, _first_facts(run, self.own_organization_id))
        waits = verdict.answer is Answer.UNKNOWN and set(verdict.needs) == {Fact.DIGEST}
        if not waits and verdict.answer is not Answer.YES:
            raise _refusal(run, verdict)

    def admit_content(self, run: Run, *, digest: str | None) -> None:
        """Say the last word, on the content that will run. Raises NotAllowed, Transient."""
        first = _first_facts(run, self.own_organization_id)
        facts = replace(first, digest=digest, unknown=first.unknown - {Fact.DIGEST})
        verdict = self._judge(run, facts)
        if verdict.answer is not Answer.YES:
            raise _refusal(run, verdict)
        log_of(run).info("run_allowed", rule=str(verdict.decider), digest=digest)

    def _judge(self, run: Run, facts: Facts) -> Verdict:
        """Judge, find out what was missing, and judge again, until nothing more can be found out."""
        while True:
            verdict = judge(self.policy, facts)
            missing = next((fact for fact in verdict.needs if fact in _SOURCES), None)
            if missing is None:
                return verdict
            facts = _SOURCES[missing](self, run, facts)
            facts = replace(facts, unknown=facts.unknown - {missing})

    # --- where the facts are ----------------------------------------------------------------------------------

    def _organization(self, run: Run, facts: Facts) -> Facts:
        """Find who asked the task that a subtask belongs to: subtasks carry the node that asked for them."""
        try:
            return replace(facts, organization_id=_asker(run.task, self.server))
        except LookupError as error:
            return replace(facts, faults={**facts.faults, Fact.ORGANIZATION: str(error)})

    def _organization_name(self, _run: Run, facts: Facts) -> Facts:
        if facts.organization_id is None:
            return facts
        return replace(
            facts, organization_name=self.server.organization_name(OrganizationId(facts.organization_id))
        )

    def _method(self, run: Run, facts: Facts) -> Facts:
        ensure_input(run, server=self.server, folders=self.folders, clock=self.clock)
        content = self.folders.read_input(run.id, limit=METHOD_LIMIT)
        _require_accepted(run, content)
        try:
            return replace(facts, method=method_of(content))
        except ValueError as error:
            return replace(facts, faults={**facts.faults, Fact.METHOD: str(error)})

    def _store(self, run: Run, facts: Facts) -> Facts:
        if run.task.store_id is None:
            return facts
        url = self.server.store_url(run.task.store_id)
        fault = f"the server does not show this node the store {run.task.store_id}"
        faults = facts.faults if url is not None else {**facts.faults, Fact.STORE: fault}
        return replace(facts, store_url=url, faults=faults)

    def _approval(self, run: Run, facts: Facts) -> Facts:
        image = parse_image(run.task.image)
        digest = facts.digest or (image.digest if image is not None else None)
        if facts.store_url is None or digest is None:
            return facts
        return replace(
            facts, approval=self.stores.approval(facts.store_url, image=run.task.image, digest=digest)
        )


_Source = Callable[[Admission, Run, Facts], Facts]
_SOURCES: Mapping[Fact, _Source] = MappingProxyType(
    {
        Fact.ORGANIZATION: Admission._organization,  # noqa: SLF001 - the table belongs to the class
        Fact.ORGANIZATION_NAME: Admission._organization_name,  # noqa: SLF001
        Fact.METHOD: Admission._method,  # noqa: SLF001
        Fact.STORE: Admission._store,  # noqa: SLF001
        Fact.APPROVAL: Admission._approval,  # noqa: SLF001
    }
)


def _first_facts(run: Run, own: OrganizationId) -> Facts:
    """Give what the task itself says."""
    task = run.task
    unknown = {Fact.ORGANIZATION_NAME, Fact.METHOD, Fact.STORE, Fact.APPROVAL, Fact.DIGEST}
    if task.parent_id is not None:
        unknown.add(Fact.ORGANIZATION)
    return Facts(
        image=task.image,
        user_id=task.init_user_id,
        user_name=task.init_user_name,
        organization_id=task.init_org_id if task.parent_id is None else None,
        own_organization_id=own,
        databases=tuple(request.label for request in task.databases),
        unknown=frozenset(unknown),
    )


def _asker(task: Task, server: Origin) -> OrganizationId | None:
    """Follow a subtask back to the task a user created; LookupError says why that cannot be done.

    Everything on the way must belong to one job of one user: a server that says otherwise is not believed.
    """
    found = task
    for _ in range(DEEPEST):
        if found.parent_id is None:
            return found.init_org_id
        above = server.find_task(found.parent_id)
        if above is None:
            raise LookupError(f"the server does not show this node the task {found.parent_id} it belongs to")
        if (above.job, above.collaboration_id) != (task.job, task.collaboration_id):
            raise LookupError(
                f"the task {found.parent_id} it belongs to is of another job, user or collaboration"
            )
        found = above
    raise LookupError(f"more than {DEEPEST} tasks stand above it")


def method_of(content: bytes | None) -> str:
    """Read the name of the method out of an input; ValueError says why it cannot be told."""
    if content is None:
        raise ValueError(f"the input is larger than {METHOD_LIMIT // 2**20} MiB, or is not there")
    try:
        # numbers are not needed, and as objects they would take many times the room they have in the text
        found = json.loads(content.decode(), object_pairs_hook=_Block, parse_int=_drop, parse_float=_drop)
    except (ValueError, RecursionError):
        raise ValueError("the input is not JSON") from None
    if not isinstance(found, _Block):
        raise ValueError("the input is not a JSON object")  # noqa: TRY004 - it is the content that is wrong
    return found.only_text("method")


def _require_accepted(run: Run, content: bytes | None) -> None:
    """Check whether what is judged is what was accepted. Raises InputChanged."""
    if content is not None and run.input_digest not in {"", hashlib.sha256(content).hexdigest()}:
        raise InputChanged("The input on this node is not the one that was accepted for this run.")


def _drop(_number: str) -> None:
    return None


class _Block:
    """A JSON object with every pair it was written with: who reads it twice must read the same."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self._pairs = pairs

    def only_text(self, key: str) -> str:
        """Give the text under *key*, which must stand there once."""
        found = [value for name, value in self._pairs if name == key]
        if len(found) != 1:
            raise ValueError(f"the input names {'no' if not found else 'more than one'} {key}")
        if not isinstance(found[0], str):
            raise ValueError(f"the {key} in the input is not text")  # noqa: TRY004 - as above
        return found[0]


def _refusal(run: Run, verdict: Verdict) -> NotAllowed:
    decider = verdict.decider
    log_of(run).warning("run_refused", rule=decider.rule, reason=decider.text)
    return NotAllowed(f"This node does not allow the image {run.task.image} for this task: {decider}.")
