"""What the short commands call: builds the few parts each of them needs, and gathers facts.

The counterpart of app.py for everything but `run`. Parts are imported where they are used, so that one command does
not load what another needs. Must not decide: checks.py judges, the adapters act.
"""

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node_agent import checks, logs
from node_agent.checks import CheckResult, FolderFacts
from node_agent.config import ANY_MACHINE, Settings, load
from node_agent.errors import NodeAgentError

if TYPE_CHECKING:
    from node_agent.compute.sighting import ApiSighting
    from node_agent.domain.ports import NodeIdentity, PinnedKey
    from node_agent.encryption import KeyFacts, Upload
    from node_agent.pruning import Pruned
    from node_agent.server.address import ServerAddress
    from node_agent.server.client import HttpServer
    from node_agent.service import RunningAgent
    from node_agent.store.presence import Sighting

_ENGINE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the commands call."""

    load: Callable[[Path], Settings]
    load_place: Callable[[Path], Settings]
    """Loads for commands that only look at the state directory: databases and secrets are not touched."""
    run: Callable[[Settings], None]
    check: Callable[[Settings, Sequence[str]], Iterable[CheckResult]]
    history: Callable[[Path, int], list[dict[str, Any]]]
    sight: Callable[[Path], "Sighting"]
    see_api: Callable[[Settings], "ApiSighting | None"]
    """Looks at the compute API; None when it is off."""
    agent: Callable[[int], "RunningAgent"]
    create_key: Callable[[Settings, Path | None], "KeyFacts"]
    show_key: Callable[[Settings], "KeyFacts"]
    upload_key: Callable[[Settings], "Upload"]
    replace_key: Callable[[Settings], "Upload"]
    """Like upload_key, whatever the server has."""
    list_keys: Callable[[Settings], "list[PinnedKey]"]
    accept_key: Callable[[Settings, int], "PinnedKey"]
    would_go: Callable[[Settings], "Pruned"]
    """What `prune` would remove; nothing is touched."""
    prune: Callable[[Settings], "Pruned"]
    ensure_network: Callable[[Settings], str]
    remove_network: Callable[[Settings], str]


def load_place(path: Path) -> Settings:
    """Load without asking for the files and secrets the configuration names."""
    return load(path, machine=ANY_MACHINE)


def run(settings: Settings) -> None:
    """Run the agent until it is asked to stop."""
    from node_agent import lean

    with lean.undisturbed():
        from node_agent.server.login import Login

        login = Login.at(settings.server).begin()
        from node_agent import app

    app.run(settings, login)


def history(state_dir: Path, limit: int) -> list[dict[str, Any]]:
    """Read the newest runs of the journal."""
    from node_agent.store.journal import read_history

    return read_history(state_dir, limit)


def sight(state_dir: Path) -> "Sighting":
    """Look at the agent of a state directory."""
    from node_agent.store import presence

    return presence.read(state_dir)


def see_api(settings: Settings) -> "ApiSighting | None":
    """Look at the compute API."""
    if settings.compute_api.listen is None:
        return None
    from node_agent.compute import sighting

    return sighting.see_api(settings.compute_api, settings.state_dir)


def hold_agent(pid: int) -> "RunningAgent":
    """Take hold of the agent's process."""
    from node_agent.service import RunningAgent

    return RunningAgent(pid)


# --- keys ------------------------------------------------------------------------------------------------------


def create_key(settings: Settings, out: Path | None) -> "KeyFacts":
    """Make a private key."""
    from node_agent import encryption

    return encryption.create_key(settings, out)


def show_key(settings: Settings) -> "KeyFacts":
    """Read the public part of the key."""
    from node_agent import encryption

    return encryption.show_key(settings)


def upload_key(settings: Settings) -> "Upload":
    """Give the server the public key, unless it has another one."""
    from node_agent import encryption

    _quiet()
    return encryption.upload_key(settings)


def list_keys(settings: Settings) -> "list[PinnedKey]":
    """Return the pinned keys of organizations."""
    from node_agent import encryption

    return encryption.list_keys(settings)


def accept_key(settings: Settings, organization: int) -> "PinnedKey":
    """Hold to the key that the server offers for an organization."""
    from node_agent import encryption

    return encryption.accept_key(settings, organization)


def replace_key(settings: Settings) -> "Upload":
    """Give the server the public key, whatever it has."""
    from node_agent import encryption

    _quiet()
    return encryption.replace_key(settings)


# --- prune -----------------------------------------------------------------------------------------------------


def would_go(settings: Settings) -> "Pruned":
    """Say what would go now."""
    from node_agent import clocks, pruning

    _quiet()
    return pruning.would_go(settings, clocks.SystemClock())


def prune(settings: Settings) -> "Pruned":
    """Remove what may go, or have the running agent do it."""
    from node_agent import clocks, pruning

    _quiet()
    return pruning.prune(settings, clocks.SystemClock())


# --- network ---------------------------------------------------------------------------------------------------


def ensure_network(settings: Settings) -> str:
    """Create network and rule, or check them; say what stands."""
    from node_agent import app

    _quiet()
    return app.ensure_network(settings)


def remove_network(settings: Settings) -> str:
    """Remove network and rule; say what is gone."""
    from node_agent import app

    _quiet()
    return app.remove_network(settings)


def _quiet() -> None:
    # the answer of a short command is its own output; what it logs on the way matters only when it fails
    logs.set_up(level="error", form="console")


# --- check -----------------------------------------------------------------------------------------------------


def check(settings: Settings, skipped: Sequence[str]) -> Iterator[CheckResult]:
    """Check one thing after the other; *skipped* names what is left out."""
    _quiet()
    pid = sight(settings.state_dir).pid
    yield from _check_place(settings)
    yield checks.judge_agent(pid)
    yield checks.judge_policy(settings.policy)
    yield from _check_databases(settings)
    yield from _check_engine(settings, pid)
    yield from _check_gates(settings)
    yield from _check_api(settings, pid)
    yield from _check_key(settings)
    if "server" not in skipped:
        yield from _check_registries(settings)
        yield from _check_server(settings)


def _check_place(settings: Settings) -> Iterator[CheckResult]:
    facts = folder_facts(settings.state_dir)
    yield checks.judge_folder(facts)
    yield checks.judge_disk(facts, settings.limits)


def folder_facts(path: Path) -> FolderFacts:
    """Look at a folder, or at the nearest one above it when it is not made yet."""
    nearest = path
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    return FolderFacts(
        path=path,
        exists=nearest == path,
        writable=nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
        mode=stat.S_IMODE(nearest.stat().st_mode),
        free_bytes=shutil.disk_usage(nearest).free,
    )


def _check_databases(settings: Settings) -> Iterator[CheckResult]:
    from node_agent.databases.access import fault_of, this_agent

    yield from checks.judge_databases(settings.databases)
    uid, gid = settings.container_reader
    varies = settings.container_ids is not None
    for database in settings.databases:
        fault = fault_of(database, uid=uid, gid=gid, agent=this_agent(), uid_varies=varies)
        yield checks.judge_database(database, fault)


def _check_key(settings: Settings) -> Iterator[CheckResult]:
    from node_agent.encryption import show_key

    if settings.private_key is None:
        return
    try:
        facts = show_key(settings)
    except NodeAgentError as error:
        yield checks.failed("key", error)
    else:
        yield checks.key_fine(facts.file, facts.public.fingerprint)


def _check_engine(settings: Settings, pid: int | None) -> Iterator[CheckResult]:
    from node_agent.runtime.connection import EngineConnection
    from node_agent.runtime.host import host_of

    connection = EngineConnection(settings.docker_host, seconds=_ENGINE_SECONDS)
    try:
        with connection.client() as client:
            facts = client.info()
        host = host_of(connection)
    except NodeAgentError as error:
        yield checks.failed("engine", error)
        yield checks.skipped("isolation", "the engine does not answer")
        return
    yield from checks.judge_engine(facts, settings.limits)
    if host.data_root is not None:
        free = shutil.disk_usage(host.data_root).free
        yield checks.judge_engine_disk(host.data_root, free, settings.limits)
    yield from _check_gpus(settings, facts)
    if pid is not None:
        yield checks.skipped("isolation", "the running agent has proven it at its start")
        return
    yield from _check_isolation(settings)


def _check_gpus(settings: Settings, facts: Mapping[str, Any]) -> Iterator[CheckResult]:
    from node_agent import imagechecks

    yield from imagechecks.judge_gpus(facts, settings.extras.gpu)


def _check_registries(settings: Settings) -> Iterator[CheckResult]:
    from node_agent import imagechecks
    from node_agent.runtime.connection import EngineConnection

    connection = EngineConnection(settings.docker_host, seconds=_ENGINE_SECONDS)
    yield from imagechecks.check_logins(settings, connection)


def _check_gates(settings: Settings) -> Iterator[CheckResult]:
    from node_agent import openings
    from node_agent.site import Site

    yield from openings.check(settings, Site.of(settings))


def _check_api(settings: Settings, pid: int | None) -> Iterator[CheckResult]:
    if settings.compute_api.listen is None:
        return
    from node_agent.compute import readiness

    yield from readiness.check_api(settings, pid=pid)


def _check_isolation(settings: Settings) -> Iterator[CheckResult]:
    from node_agent.runtime.probe import probe_isolation
    from node_agent.site import Site

    site = Site.of(settings)
    accepting = settings.network.accept_open_host
    try:
        prepared = site.prepare()
        yield checks.judge_firewall(
            loaded=prepared.firewall.loaded, reason=prepared.firewall.reason, accepted=accepting
        )
        # neither proxy nor gates listen while no agent runs
        plan = replace(site.plan(prepared), proxy_port=None, gates=())
        report = probe_isolation(site.connection, site.engine, prepared.network, plan)
    except NodeAgentError as error:
        yield checks.failed("isolation", error)
        return
    refused = report.without(site.accepted).findings
    accepted = [finding for finding in report.findings if finding not in refused]
    yield checks.judge_isolation(
        [str(finding) for finding in refused], [str(finding) for finding in accepted]
    )


def _check_server(settings: Settings) -> Iterator[CheckResult]:
    from node_agent.server.address import ServerAddress
    from node_agent.server.client import HttpServer
    from node_agent.server.exchange import Exchange
    from node_agent.server.tokens import Tokens

    exchange = Exchange(ServerAddress.of(settings.server.url, ca_bundle=settings.server.ca_bundle))
    server = HttpServer(exchange, Tokens(exchange, settings.server.api_key))
    try:
        identity = server.identify()
        yield checks.judge_identity(identity)
        yield from _check_encryption(settings, identity, server)
    except NodeAgentError as error:
        yield checks.failed("server", error, todo="Check server.url, and that this machine may reach it.")
        return
    finally:
        server.close()
    yield checks.judge_clock(_server_time(exchange.address), time.time())


def _check_encryption(
    settings: Settings, identity: "NodeIdentity", server: "HttpServer"
) -> Iterator[CheckResult]:
    from node_agent.encryption import check_encryption, own_key
    from node_agent.server.keys import KeyState, different_key

    try:
        key = own_key(settings)
        check_encryption(identity, key)
        if key is None:
            yield checks.encryption_fine(None)
            return
        published = server.keys.published(identity.organization_id)
        state = published.state(key.public)
        if state is KeyState.DIFFERENT:
            raise different_key(key.public, published)
        yield checks.encryption_fine(str(published) if state is KeyState.SAME else "")
    except NodeAgentError as error:
        yield checks.failed("encryption", error)


def _server_time(address: "ServerAddress") -> float | None:
    from node_agent.server.address import rest_session

    # the HTTP library's errors are OSErrors
    try:
        with (
            rest_session(address) as session,
            session.get(f"{address.rest}/version", timeout=(5, 5), stream=True) as response,
        ):
            return parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (OSError, KeyError, ValueError):
        return None


PARTS: Final = Parts(
    load=load,
    load_place=load_place,
    run=run,
    check=check,
    history=history,
    sight=sight,
    see_api=see_api,
    agent=hold_agent,
    create_key=create_key,
    show_key=show_key,
    upload_key=upload_key,
    replace_key=replace_key,
    list_keys=list_keys,
    accept_key=accept_key,
    would_go=would_go,
    prune=prune,
    ensure_network=ensure_network,
    remove_network=remove_network,
)
