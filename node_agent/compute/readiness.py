"""Whether the compute API can do its work on this machine: for `node-agent check`, and for the start.

Looks at what the configuration names: installed packages, the certificate, the address, the command. Judges in the same
place, since each question is small. Must not change anything, nor know requests or jobs.
"""

import errno
import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from node_agent.checks import CheckResult, Verdict, failed
from node_agent.compute.callback import fetch_of
from node_agent.compute.offer import assets_of, doubts_about
from node_agent.compute.sighting import is_listened_on
from node_agent.config import Settings
from node_agent.config.compute import ComputeApiSection, TlsSection, place_of_listener
from node_agent.domain.assets import Assets
from node_agent.domain.joboffer import AccessKind
from node_agent.domain.policy import is_consumer
from node_agent.domain.verdict import Answer, Fact, Facts, judge
from node_agent.errors import ConfigError

_OPEN: Final = frozenset(Fact) - {Fact.DIGEST}
"""What is not known of a job that somebody may ask for."""
_PACKAGES: Final = {"cheroot": "cheroot", "Crypto": "pycryptodome"}
_INSTALL: Final = "Install them: pip install 'node-agent[compute]'"
_SOON_DAYS: Final = 14
_TROUBLE: Final = {
    errno.EADDRINUSE: (
        "is in use",
        "Stop what listens there, or choose another port with compute_api.listen.",
    ),
    errno.EADDRNOTAVAIL: (
        "is no address of this machine",
        "Choose one that `ip address` shows with compute_api.listen.",
    ),
    errno.EACCES: ("is not allowed for this user", "Choose a port above 1023 with compute_api.listen."),
}


def require_ready(settings: Settings) -> None:
    """Refuse to start with what would make the API fail or unsafe. Raises ConfigError."""
    compute = settings.compute_api
    if compute.listen is None:
        return
    require_packages()
    if compute.tls is not None:
        require_certificate(compute.tls)
    _require_who_decides(compute)


def require_packages(find: Callable[[str], object] = find_spec) -> None:
    """Refuse when the extra is not installed; *find* gives None for a module that is not there. Raises ConfigError."""
    missing = [package for module, package in _PACKAGES.items() if find(module) is None]
    if missing:
        raise ConfigError(
            f"The compute API (compute_api.listen) needs packages that are not installed: {', '.join(missing)}.",
            hint=_INSTALL,
        )


def require_certificate(tls: TlsSection) -> None:
    """Refuse a certificate that no listener could use, and a key that is no secret. Raises ConfigError."""
    try:
        with tls.key.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # asked for nothing: a service has nobody who could type a passphrase
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
    except ssl.SSLError as error:
        raise ConfigError(
            f"{tls.certificate} and {tls.key} are no certificate with its key: {error.reason or error}.",
            hint="compute_api.tls needs two PEM files that belong together; the key has no passphrase.",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{tls.certificate} or {tls.key} cannot be read: {error.strerror}.",
            hint="Let the agent's user read both files of compute_api.tls.",
        ) from error
    if mode & stat.S_IRWXO:
        raise ConfigError(
            f"{tls.key} is open to every user of this machine.", hint=f"Run: chmod o= {tls.key}"
        )


def require_command(command: Path) -> None:
    """Refuse a command that cannot run, or that somebody else could exchange. Raises ConfigError."""
    if not command.is_file() or not os.access(command, os.X_OK):
        raise ConfigError(
            f"{command} is no program that this user may run.",
            hint="Correct compute_api.command, or make it executable: chmod +x",
        )
    # the folders of a link count as well as those of what it leads to
    for path in dict.fromkeys((command, *command.parents, *command.resolve().parents)):
        fault = _open_to_others(path)
        if fault:
            raise ConfigError(
                f"{path} {fault}, and who may change it decides who may use the data.",
                hint=f"Run: chmod o-w {path}, and let root or the agent's user own it.",
            )


def _open_to_others(path: Path) -> str:
    try:
        found = path.stat()
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"
    if found.st_uid not in {0, os.geteuid()}:
        return f"belongs to the user {found.st_uid}"
    # in a folder like /tmp everybody may write, and nobody may exchange what belongs to another
    if found.st_mode & stat.S_IWOTH and not (path.is_dir() and found.st_mode & stat.S_ISVTX):
        return "may be written by every user of this machine"
    return ""


# --- node-agent check -----------------------------------------------------------------------------------------


def check_api(settings: Settings, *, pid: int | None) -> Iterator[CheckResult]:
    """Check what the compute API needs; nothing when it is off. *pid* is the running agent's."""
    compute = settings.compute_api
    if compute.listen is None:
        return
    yield from _check_packages()
    yield check_address(compute.listen, pid)
    if compute.tls is not None:
        yield check_certificate(compute.tls)
    yield from check_access(compute)
    yield from check_policy(settings)
    yield from check_offer(settings)


def _check_packages() -> Iterator[CheckResult]:
    try:
        require_packages()
    except ConfigError as error:
        yield failed("compute API", error)


def check_address(listen: str, pid: int | None) -> CheckResult:
    """Say whether the address can be listened on, or already is by the running agent."""
    name = "compute API"
    host, port = place_of_listener(listen)
    if pid is not None and is_listened_on(host, port):
        return CheckResult(name=name, verdict=Verdict.OK, found=f"{listen} is listened on, as the agent runs")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
            trial.listen(1)
    except OSError as error:
        found, todo = _TROUBLE.get(error.errno or 0, (f"cannot be used ({error.strerror})", ""))
        return CheckResult(name=name, verdict=Verdict.FAIL, found=f"{listen} {found}", todo=todo)
    if pid is not None:
        return CheckResult(
            name=name,
            verdict=Verdict.WARNING,
            found=f"the running agent does not listen on {listen}",
            todo="It takes compute_api up when it is started again.",
        )
    return CheckResult(name=name, verdict=Verdict.OK, found=f"{listen} is free")


def check_certificate(tls: TlsSection) -> CheckResult:
    """Say whether certificate and key fit, and how long they do."""
    name = "certificate"
    try:
        require_certificate(tls)
    except ConfigError as error:
        return failed(name, error)
    left = _days_left(tls.certificate)
    if left is None:
        return CheckResult(name=name, verdict=Verdict.OK, found=f"{tls.certificate} fits its key")
    if left < 0:
        return CheckResult(
            name=name,
            verdict=Verdict.FAIL,
            found=f"{tls.certificate} ended {int(-left)} days ago",
            todo="Renew it: every client refuses it.",
        )
    verdict = Verdict.WARNING if left < _SOON_DAYS else Verdict.OK
    todo = "Renew it soon, and restart the agent then." if left < _SOON_DAYS else ""
    found = f"{tls.certificate} fits its key, and holds for {int(left)} days"
    return CheckResult(name=name, verdict=verdict, found=found, todo=todo)


def _days_left(certificate: Path) -> float | None:
    from cryptography import x509

    with suppress(OSError, ValueError):
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        return (found.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86_400
    return None


def check_access(compute: ComputeApiSection) -> Iterator[CheckResult]:
    """Say who decides, and when that is nobody."""
    name = "compute access"
    nobody = {
        AccessKind.DENY: compute.data_sets != (),
        AccessKind.ADDRESSES: compute.addresses == (),
    }
    if nobody.get(compute.access):
        yield CheckResult(
            name=name,
            verdict=Verdict.WARNING,
            found=f"compute_api.access is {compute.access}: nobody may use a data set",
            todo="Choose another way with compute_api.access, or list addresses.",
        )
        return
    try:
        _require_who_decides(compute)
    except ConfigError as error:
        yield failed(name, error)
        return
    yield CheckResult(name=name, verdict=Verdict.OK, found=f"decided by {compute.access}")


def _require_who_decides(compute: ComputeApiSection) -> None:
    if compute.access is AccessKind.COMMAND and compute.command is not None:
        require_command(compute.command)
    if compute.access is AccessKind.CALLBACK and compute.callback is not None:
        fetch_of(compute.callback, ca_bundle=compute.callback_ca_bundle)


def check_policy(settings: Settings) -> Iterator[CheckResult]:
    """Say when the owner's policy leaves jobs no way: it counts for them as for every run."""
    doubts = tuple(_doubts_of_policy(settings))
    if doubts:
        yield CheckResult(
            name="compute policy",
            verdict=Verdict.WARNING,
            found="the policy refuses jobs of the compute API",
            todo="Ask what would happen to one: node-agent policy explain -c FILE --image IMAGE --user 0x…",
            faults=doubts,
        )


def _doubts_of_policy(settings: Settings) -> Iterator[str]:
    policy = settings.policy
    if policy.organizations is not None or policy.own_organization_only:
        yield "policy.organizations or policy.own_organization_only is set: no job runs, since consumers belong to none"
    if policy.users is not None and not any(map(is_consumer, policy.users)):
        yield "policy.users names no address: no job runs"
    for algorithm in settings.compute_api.algorithms:
        facts = Facts(image=f"{algorithm.image}@{algorithm.digest}", digest=algorithm.digest, unknown=_OPEN)
        verdict = judge(policy, facts)
        if verdict.answer is Answer.NO:
            yield f"{algorithm.image} of the catalogue does not run: {verdict.decider}"


def check_offer(settings: Settings) -> Iterator[CheckResult]:
    """Show every data set and algorithm with its DID, and say what nobody can use."""
    try:
        assets = assets_of(settings)
    except ConfigError as error:
        yield failed("compute offer", error)
        return
    for data_set in assets.data_sets.values():
        yield CheckResult(name="data set", verdict=Verdict.OK, found=f"{data_set.label} is {data_set.did}")
    for algorithm in assets.algorithms.values():
        yield CheckResult(name="algorithm", verdict=Verdict.OK, found=f"{algorithm.image} is {algorithm.did}")
    yield from _judge_offer(assets)


def _judge_offer(assets: Assets) -> Iterator[CheckResult]:
    doubts = tuple(doubts_about(assets))
    if doubts or not assets.data_sets:
        yield CheckResult(
            name="compute offer",
            verdict=Verdict.WARNING,
            found="not all that is offered can be used" if doubts else "no data set is offered",
            todo="See compute_api.data_sets, and what `node-agent offer` shows.",
            faults=doubts,
        )
