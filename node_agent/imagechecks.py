"""The part of `node-agent check` about where images come from and what hardware they get.

Gathers and judges in one place, since each question is small. Must not change anything.
"""

import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from node_agent.checks import CheckResult, Verdict, failed
from node_agent.config import Settings
from node_agent.errors import EngineUnreachable, RegistryUnreachable
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.logins import refusal_of
from node_agent.runtime.registries import RegistryAccounts

MOST_LOGINS: Final = 20
_WORDS_FOR_GPU: Final = ("nvidia", "gpu", "amd.com", "rocm")


def check_logins(settings: Settings, connection: EngineConnection) -> Iterator[CheckResult]:
    """Try every login that the configuration names."""
    accounts = RegistryAccounts(settings.images.registries, docker_config=settings.images.docker_config)
    try:
        hosts = accounts.hosts()
    except RegistryUnreachable as error:
        yield failed("registries", error)
        return
    yield from _check_file(settings.images.docker_config)
    for host in hosts[:MOST_LOGINS]:
        yield _check_login(host, accounts, connection)


def _check_file(path: Path | None) -> Iterator[CheckResult]:
    if path is not None and path.stat().st_mode & stat.S_IRWXO:
        yield CheckResult(
            name="registries",
            verdict=Verdict.WARNING,
            found=f"{path} is open to every user of this machine, and passwords may stand in it",
            todo=f"Run: chmod o= {path}",
        )


def _check_login(host: str, accounts: RegistryAccounts, connection: EngineConnection) -> CheckResult:
    name = f"registry {host}"
    try:
        account = accounts.account_for(host)
        if account is None:
            return CheckResult(name=name, verdict=Verdict.OK, found="no account for it is stored")
        refused = refusal_of(account, connection)
    except (RegistryUnreachable, EngineUnreachable) as error:
        return failed(name, error)
    if refused:
        return CheckResult(
            name=name,
            verdict=Verdict.FAIL,
            found=f"the login ({account.source}) did not work: {refused}",
            todo="Correct the login, or start the registry.",
        )
    return CheckResult(name=name, verdict=Verdict.OK, found=f"accepts the login ({account.source})")


def judge_gpus(facts: Mapping[str, Any], patterns: Sequence[str]) -> list[CheckResult]:
    """Judge by what the engine says of itself whether the images of policy.gpu will get a GPU."""
    if not patterns:
        return []
    known = [*(facts.get("Runtimes") or ()), *map(str, facts.get("DiscoveredDevices") or ())]
    if any(word in name.lower() for name in known for word in _WORDS_FOR_GPU):
        return [CheckResult(name="gpu", verdict=Verdict.OK, found="the engine knows how to hand in GPUs")]
    return [
        CheckResult(
            name="gpu",
            verdict=Verdict.WARNING,
            found="policy.gpu is set, and the engine names nothing that could hand in a GPU",
            todo="Install the engine's GPU support (NVIDIA Container Toolkit), or take policy.gpu out: "
            "runs of these images end with `start failed` otherwise.",
        )
    ]
