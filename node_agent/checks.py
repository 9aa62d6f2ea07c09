"""The judgements of `node-agent check`: is what was found good enough, and what is to be done if not.

Pure: facts in, verdicts out. Must not look at anything itself; commands.py gathers the facts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from node_agent.config import LimitsSection
from node_agent.domain.database import Database
from node_agent.domain.patterns import is_open
from node_agent.domain.policy import Policy
from node_agent.domain.ports import NodeIdentity
from node_agent.domain.verdict import NAMES_NOT_TOLD, has_user_names
from node_agent.errors import ConfigError, NodeAgentError
from node_agent.space import memory_for_runs

OLDEST_ENGINE: Final = (20, 10)
SKEW_SECONDS: Final = 60.0
"""Tokens live for hours: a clock wrong by less does no harm."""
_GIB: Final = 2**30
_ENGINE_LIMITS: Final[Mapping[str, str]] = {
    "MemoryLimit": "memory",
    "SwapLimit": "swap",
    "CpuCfsQuota": "CPU",
    "PidsLimit": "process",
}


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """Good enough to run, but somebody should look."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One line of the answer."""

    name: str
    verdict: Verdict
    found: str
    todo: str = ""
    faults: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Give the result for another program."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFacts:
    """What is known of the state directory, or of the nearest folder above it when it is not made yet."""

    path: Path
    exists: bool
    writable: bool
    mode: int
    free_bytes: int


def _fine(name: str, found: str) -> CheckResult:
    return CheckResult(name=name, verdict=Verdict.OK, found=found)


def _warning(name: str, found: str, todo: str) -> CheckResult:
    return CheckResult(name=name, verdict=Verdict.WARNING, found=found, todo=todo)


def _fail(name: str, found: str, todo: str, faults: Iterable[str] = ()) -> CheckResult:
    return CheckResult(name=name, verdict=Verdict.FAIL, found=found, todo=todo, faults=tuple(faults))


def failed(name: str, error: NodeAgentError, *, todo: str = "") -> CheckResult:
    """Turn the error a check ended with into its line; *todo* stands in for a missing hint."""
    return _fail(name, error.message, error.hint or todo, getattr(error, "faults", ()))


def skipped(name: str, reason: str) -> CheckResult:
    """Say that something was not looked at, which is no failure of its own."""
    return _warning(name, f"not checked: {reason}", "")


def configuration_fine(path: Path) -> CheckResult:
    """Say that the file was understood."""
    return _fine("configuration", f"{path} is understood")


def configuration_faulty(error: ConfigError) -> CheckResult:
    """List what is wrong with the file."""
    return failed("configuration", error)


def judge_folder(facts: FolderFacts) -> CheckResult:
    """Judge the state directory itself."""
    name = "state directory"
    if not facts.writable:
        whose = "is not writable" if facts.exists else "cannot be made here"
        return _fail(
            name,
            f"{facts.path} {whose} for this user",
            f"Make it: install -d -m 0700 {facts.path}, as the agent's user.",
        )
    if not facts.exists:
        return _fine(name, f"{facts.path} will be made at the first start")
    if facts.mode & 0o077:
        return _warning(
            name, f"{facts.path} is open to others (mode {facts.mode:04o})", f"Run: chmod 0700 {facts.path}"
        )
    return _fine(name, f"{facts.path} is private and writable")


def judge_disk(facts: FolderFacts, limits: LimitsSection) -> CheckResult:
    """Judge the free space against what the runs may write at once."""
    most = limits.concurrent_runs * (2 * limits.output_size + limits.tmp_size)
    free = f"{facts.free_bytes / _GIB:.1f} GiB free"
    if facts.free_bytes < limits.min_free_disk:
        return _fail(
            "disk", f"{free}, and {_no_run_begins(limits)}", f"Free some space where {facts.path} is."
        )
    if facts.free_bytes < most:
        return _warning(
            "disk",
            f"{free}; {limits.concurrent_runs} runs at their limits may write {most / _GIB:.1f} GiB",
            "Free some space, or lower limits.output_size, limits.tmp_size or limits.concurrent_runs.",
        )
    return _fine("disk", free)


def judge_engine_disk(data_root: Path, free_bytes: int, limits: LimitsSection) -> CheckResult:
    """Judge the free space where the engine keeps images and containers."""
    found = f"{free_bytes / _GIB:.1f} GiB free in {data_root}"
    if free_bytes < limits.min_free_disk:
        return _fail("engine disk", f"{found}, and {_no_run_begins(limits)}", "Free some space there.")
    return _fine("engine disk", found)


def _no_run_begins(limits: LimitsSection) -> str:
    return f"no run begins under {limits.min_free_disk / _GIB:.3g} GiB (limits.min_free_disk)"


def judge_agent(pid: int | None) -> CheckResult:
    """Say whether an agent is running with this state directory."""
    return _fine("agent", "not running" if pid is None else f"running as process {pid}")


def judge_engine(facts: Mapping[str, Any], limits: LimitsSection) -> list[CheckResult]:
    """Judge the container engine by what it says of itself."""
    version = str(facts.get("ServerVersion", ""))
    found = f"version {version}, storage {facts.get('Driver')}, cgroup v{facts.get('CgroupVersion', '1')}"
    if _release(version) < OLDEST_ENGINE:
        return [_fail("engine", found, "Install Docker Engine 20.10 or newer.")]
    return [_fine("engine", found), _judge_engine_limits(facts), _judge_capacity(facts, limits)]


def _release(version: str) -> tuple[int, int]:
    parts = [int(part) if part.isdecimal() else 0 for part in version.split(".")[:2]]
    return (parts[0], parts[1]) if len(parts) == len(OLDEST_ENGINE) else (0, 0)


def _judge_engine_limits(facts: Mapping[str, Any]) -> CheckResult:
    absent = [words for key, words in _ENGINE_LIMITS.items() if facts.get(key) is False]
    if absent:
        return _fail(
            "engine limits",
            f"the engine does not enforce {', '.join(absent)} limits",
            "Use cgroup v2 with systemd, or an engine that runs as root; for swap, boot with swapaccount=1.",
        )
    return _fine("engine limits", "memory, swap, CPU and process limits are enforced")


def _judge_capacity(facts: Mapping[str, Any], limits: LimitsSection) -> CheckResult:
    cores, memory = facts.get("NCPU") or 0, facts.get("MemTotal") or 0
    if cores and limits.cpus > cores:
        return _fail(
            "capacity",
            f"limits.cpus is {limits.cpus:g}, the engine has {cores} and refuses more",
            f"Set limits.cpus to {cores} or less.",
        )
    doubt = _memory_doubt(limits, memory)
    if doubt:
        return _warning(
            "capacity", doubt, "Lower limits.memory, limits.total_memory or limits.concurrent_runs."
        )
    return _fine("capacity", f"{cores} CPUs and {memory / _GIB:.1f} GiB of memory are enough for the limits")


def _memory_doubt(limits: LimitsSection, machine: int) -> str:
    has = f"the engine's machine has {machine / _GIB:.3g} GiB"
    if machine and limits.memory > machine:
        return f"limits.memory is {limits.memory / _GIB:.3g} GiB, {has}"
    if machine and (limits.total_memory or 0) > machine:
        return f"limits.total_memory is {(limits.total_memory or 0) / _GIB:.3g} GiB, {has}"
    total = memory_for_runs(limits, machine_memory=machine or None)
    fitting = limits.concurrent_runs if total is None else max(1, total // limits.memory)
    if fitting < limits.concurrent_runs:
        return (
            f"at the same time {fitting} runs of {limits.memory / _GIB:.3g} GiB fit into the {(total or 0) / _GIB:.3g} GiB "
            f"for all of them, not {limits.concurrent_runs}; further ones wait"
        )
    return ""


def judge_firewall(*, loaded: bool, reason: str, accepted: bool) -> CheckResult:
    """Judge whether the host is closed to the isolated network by a rule."""
    if loaded:
        return _fine("firewall", "the rule that closes this host to algorithms is loaded")
    found = f"the rule that closes this host to algorithms is not loaded: {reason}"
    if accepted:
        return _warning(
            "firewall", found, "network.accept_open_host accepts that algorithms may reach this host."
        )
    return _warning(
        "firewall",
        found,
        "As root, run: node-agent network ensure -c FILE. The isolation check tells whether it is needed.",
    )


def judge_isolation(refused: Sequence[str], accepted: Sequence[str]) -> CheckResult:
    """Judge what a container of ours could reach; *accepted* is what the owner puts up with."""
    if refused:
        return _fail("isolation", "algorithms would not be shut in", "Do what is said above.", refused)
    if accepted:
        return CheckResult(
            name="isolation",
            verdict=Verdict.WARNING,
            found="not all is closed, and network.accept_open_host or limits.accept_unenforced accepts it",
            faults=tuple(accepted),
        )
    return _fine("isolation", "a container like a run's reached nothing")


def judge_database(database: Database, fault: str | None) -> CheckResult:
    """Judge whether algorithms can read one database."""
    name = f"database {database.label}"
    if fault:
        return _fail(name, fault, "")
    return _fine(
        name, f"{database.type}, readable" if database.path else f"{database.type} service, handed through"
    )


def judge_databases(databases: Sequence[Database]) -> list[CheckResult]:
    """Warn when there is nothing to compute on."""
    if databases:
        return []
    return [_warning("databases", "none configured", "List the sources algorithms may read under databases.")]


def judge_policy(policy: Policy) -> CheckResult:
    """Judge the owner's rules: does anything run, and is anything more open than it may seem."""
    doubts = tuple(_doubts(policy))
    entries = len(policy.algorithms or ()) + len(policy.stores or ())
    found = f"{entries} entries for images and stores"
    if not doubts:
        return _fine("policy", found)
    return CheckResult(
        name="policy",
        verdict=Verdict.WARNING,
        found=found,
        todo="Ask what would happen to a task: node-agent policy explain -c FILE --image IMAGE",
        faults=doubts,
    )


def _doubts(policy: Policy) -> Iterator[str]:
    yield from _doubts_about_sources(policy)
    for name, listed in (("users", policy.users), ("organizations", policy.organizations)):
        if listed == ():
            yield f"policy.{name} is an empty list: nobody may ask, so nothing runs"
    if has_user_names(policy):
        yield f"policy.users holds names: {NAMES_NOT_TOLD}"
    if policy.restrictions and any(map(is_open, policy.algorithms or ())):
        yield (
            "policy.restrict means images by their name, and policy.algorithms allows every registry: the same content "
            "may come under another name"
        )


def _doubts_about_sources(policy: Policy) -> Iterator[str]:
    sources = (("algorithms", policy.algorithms), ("algorithm_stores", policy.stores))
    if all(listed is None for _, listed in sources):
        yield "neither policy.algorithms nor policy.algorithm_stores is set: nothing runs"
    for name, listed in sources:
        if listed == ():
            yield f"policy.{name} is an empty list: it allows nothing"
        for pattern in listed or ():
            if is_open(pattern):
                yield f"policy.{name}: {pattern} says nothing about where an image or a store is from"
            if pattern.startswith("http://"):
                yield f"policy.{name}: {pattern} is not https, and the node's token is sent to the store"


def judge_identity(identity: NodeIdentity) -> CheckResult:
    """Judge who this node is at the server."""
    who = f"{identity.node_name} of {identity.organization_name} in {identity.collaboration_name}"
    return _fine("server", who)


def judge_gate(name: str, found: str, *, fine: bool = False) -> CheckResult:
    """Say that a way out of the isolated network works, or what about it deserves a look."""
    return _fine(name, found) if fine else _warning(name, found, "")


def key_fine(path: Path, fingerprint: str) -> CheckResult:
    """Say that the private key could be read."""
    return _fine("key", f"{fingerprint} in {path}")


def encryption_fine(published: str | None) -> CheckResult:
    """Say that key and collaboration fit; *published* is the server's key, empty when it has none yet."""
    if published is None:
        return _fine("encryption", "this collaboration is not encrypted, and this node has no key")
    if published:
        return _fine("encryption", f"the server has the public key that fits, {published}")
    return _fine("encryption", "the server has no public key yet; the next start uploads it")


def judge_clock(server: float | None, here: float) -> CheckResult:
    """Judge this machine's clock by the server's."""
    if server is None:
        return _warning("clock", "the server did not say what time it is", "")
    skew = here - server
    if abs(skew) > SKEW_SECONDS:
        direction = "ahead of" if skew > 0 else "behind"
        return _warning(
            "clock",
            f"this machine is {abs(skew):.0f} s {direction} the server",
            "Keep the clock right, for example with systemd-timesyncd or chrony.",
        )
    return _fine("clock", "agrees with the server")
