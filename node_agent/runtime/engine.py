"""The Docker engine behind the port `Runtime`: images, containers, logs and events.

Owns every call about images and containers. Must not know what a run is for: it is given a spec and gives back reports.
"""

import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, BinaryIO

import requests
from docker import APIClient
from docker.errors import APIError, InvalidVersion, NotFound

from node_agent.domain.container import (
    UNBOUNDED,
    ContainerReport,
    ContainerSpec,
    NetworkFacts,
    Phase,
    PinnedImage,
    PullBounds,
    PullProgress,
    run_container_name,
)
from node_agent.domain.policy import ImageName, parse_image
from node_agent.domain.ports import Network
from node_agent.domain.run import ContainerId, RunId
from node_agent.domain.runlogs import LogEntry, LogMask
from node_agent.errors import (
    ConfigError,
    ContainerLost,
    EngineUnreachable,
    ImageMissing,
    NamespaceLost,
    RegistryUnreachable,
    RunClosed,
    StartFailed,
)
from node_agent.runtime import podman
from node_agent.runtime.connection import EngineConnection, engine_text
from node_agent.runtime.endings import with_its_end
from node_agent.runtime.logcut import copy_cut
from node_agent.runtime.logfollow import blocks_of, entries_after, follow_parameters, frames_of
from node_agent.runtime.namespaces import Namespaces
from node_agent.runtime.network import bridge_is_here
from node_agent.runtime.pulling import (
    PullGuard,
    PullStory,
    exact_reference,
    known_digest,
    refusal,
    verified_digest,
)
from node_agent.runtime.reading import report_of, run_of_labels, seconds_of
from node_agent.runtime.registries import Account, RegistryAccounts, registry_of
from node_agent.runtime.spec import (
    LABEL_KEEPER,
    LABEL_NAME,
    EngineTraits,
    ImageFacts,
    container_config,
    differences,
    image_facts,
    joined_namespace,
    labels,
)
from node_agent.runtime.stream import StreamStalled, lines_of
from node_agent.runtime.traits import traits_of

Describe = Callable[[APIClient, str], Mapping[str, Any]]

PULL_PATIENCE = 120.0
PULL_TICK = 0.5
REMEMBERED_IMAGES = 1000
EVENT_OVERLAP = 2
"""Seconds of events asked for again, since the engine answers a moment before it listens."""

_NOT_FOUND = 404
_CONFLICT = 409
# How engines say that there is no GPU, or nothing that could hand it in.
_NO_GPU = ("could not select device driver", "nvidia-container", "nvidia driver", "unresolvable cdi devices")
# The engine is short of something for now; the container itself is as good as before.
_PASSING = (
    "no available ipv4 addresses",
    "no available addresses",
    "temporarily unavailable",
    "device or resource busy",
    "no space left on device",
    "deadline exceeded",
    "context canceled",
)
_NO_RIGHTS = (
    "This node runs algorithms as a user without rights, whatever user the image names; what it runs must be readable to "
    "everybody. The owner of the node can make an exception for the image (hardening.relax)."
)


class DockerEngine:
    """One Docker engine, seen by the agent *name*; containers are attached to *network* alone."""

    def __init__(
        self,
        name: str,
        connection: EngineConnection,
        network: Network,
        *,
        accounts: RegistryAccounts | None = None,
        pull_patience: float = PULL_PATIENCE,
        is_here: Callable[[str], bool] = bridge_is_here,
        looking_up: "threading.Lock | None" = None,
        namespaces: Namespaces | None = None,
    ) -> None:
        self._name = name
        self._connection = connection
        self._network = network
        self._accounts = accounts or RegistryAccounts()
        self._pull_patience = pull_patience
        self._is_here = is_here
        self._looking_up = looking_up or threading.Lock()
        """Held while an image is looked up: it is not removed between the look and the answer."""
        self._image_facts: dict[str, ImageFacts] = {}
        """By image id, which names one content for ever."""
        self._never_started: set[ContainerId] = set()
        """Containers that were looked at, and that this process did not try to start since."""
        self._namespaces = namespaces or Namespaces(name, connection, most=0, user=(0, 0))

    # --- images -----------------------------------------------------------------------------------------------

    def find_image(self, reference: str) -> PinnedImage | None:
        """Look an image up on this machine only."""
        image = parse_image(reference)
        if image is None:
            return None
        with self._looking_up, self._connection.client() as client:
            try:
                found = self._image(client, exact_reference(image))
            except NotFound:
                return None
        return PinnedImage(image_id=found["Id"], digest=known_digest(image, found.get("RepoDigests") or ()))

    def registry_digest(self, reference: str) -> str:
        """Ask the registry which digest *reference* has now."""
        image = _parsed(reference)
        account = self._accounts.account_for(registry_of(image))
        with self._connection.client() as client:
            response = client.get(
                _url(client, f"/distribution/{exact_reference(image)}/json"),
                headers=account.header if account else {},
                timeout=client.timeout,
            )
            if response.status_code == _NOT_FOUND and podman.is_podman(client):
                raise ImageMissing(
                    f"The engine of this node, Podman, cannot ask a registry for the digest of {reference}.",
                    hint="The owner of the node must allow the image without a digest, or use a Docker engine.",
                )
        _raise_refused(reference, response, account)
        return str(response.json()["Descriptor"]["digest"])

    def pull_image(
        self,
        reference: str,
        *,
        wanted: Callable[[], bool],
        progress: Callable[[PullProgress], None],
        here: PinnedImage | None = None,
        bounds: PullBounds = UNBOUNDED,
    ) -> PinnedImage:
        """Pull an image, tell how far it is about twice a second, and verify what arrived."""
        image = _parsed(reference)
        story = PullStory(reference)
        guard = PullGuard(reference, bounds)

        def look_up() -> None:
            if not wanted():
                raise RunClosed(f"The pull of {reference} was called off.")
            if story.has_fetched:  # to find that everything is here takes nothing
                guard.check(story.progress)
            progress(story.progress)

        look_up()
        with self._connection.errors():
            before = self._images_before(here)
            try:
                for line in lines_of(
                    lambda: self._open_pull(story, image),
                    patience=self._pull_patience,
                    tick=PULL_TICK,
                    on_tick=look_up,
                ):
                    story.read(line)
            except StreamStalled as error:
                raise RegistryUnreachable(
                    f"The pull of {reference} made no progress for {self._pull_patience:.0f} s."
                ) from error
            look_up()
            if here is not None and story.is_up_to_date and story.digest == here.digest:
                return here
            pulled = self._verified(image, story.digest)
            is_new = story.has_fetched if before is None else pulled.image_id not in before
            if is_new:
                self._refuse_if_too_large(image, pulled, guard, here)
            return replace(pulled, is_new=is_new)

    def _refuse_if_too_large(
        self, image: ImageName, pulled: PinnedImage, guard: PullGuard, here: PinnedImage | None
    ) -> None:
        """Remove an image that was just pulled and is too large; its name means again what it meant before."""
        with self._looking_up, self._connection.client() as client:
            found = self._image(client, pulled.image_id)
            try:
                guard.check_size(int(found.get("Size") or 0))
            except ImageMissing:
                if here is not None and image.digest is None:
                    client.tag(here.image_id, image.name, image.tag or "latest")
                # it was on this machine under no name before: all its names are of this pull
                with suppress(APIError):  # in use already by somebody who looked it up meanwhile
                    client.remove_image(pulled.image_id, force=True)
                raise

    def _images_before(self, here: PinnedImage | None) -> frozenset[str] | None:
        """List all images, unless the pull shows by itself that what it brings was not on this machine.

        What had no need of a new layer may have been here. It counts as such where an older image has the name, so that
        the list, which is slow with many images, is not asked for at every pull.
        """
        with self._connection.client() as client:
            # Podman also tells of layers that it has.
            if here is not None and not podman.is_podman(client):
                return None
            return _image_ids(client)

    def _open_pull(self, story: PullStory, image: ImageName) -> requests.Response:
        # here, in a thread that can be left: a credential helper may take its time
        account = self._accounts.account_for(registry_of(image))
        story.account = account.source if account else ""
        with self._connection.client() as client:
            response = client.post(
                _url(client, "/images/create"),
                params={"fromImage": image.name, "tag": image.digest or image.tag or "latest"},
                headers=account.header if account else {},
                stream=True,
                timeout=(client.timeout, self._pull_patience + 10),
            )
        _raise_refused(story.reference, response, account)
        return response

    def _verified(self, image: ImageName, announced: str | None) -> PinnedImage:
        try:
            with self._looking_up, self._connection.client() as client:
                found = self._image(client, exact_reference(image))
        except NotFound as error:
            raise RegistryUnreachable(
                f"The pull of {image.name} ended without an image on this machine."
            ) from error
        digest = verified_digest(image, announced, found.get("RepoDigests") or ())
        return PinnedImage(image_id=found["Id"], digest=digest)

    def _image(self, client: APIClient, reference: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = client.inspect_image(reference)  # type: ignore[no-untyped-call]
        if len(self._image_facts) >= REMEMBERED_IMAGES:
            self._image_facts.clear()
        self._image_facts[found["Id"]] = image_facts(found)
        return found

    def _facts_of(self, client: APIClient, image_id: str) -> ImageFacts:
        """Return what an image brings. Raises NotFound."""
        known = self._image_facts.get(image_id)
        return image_facts(self._image(client, image_id)) if known is None else known

    # --- containers -------------------------------------------------------------------------------------------

    def ensure_container(self, spec: ContainerSpec) -> ContainerId:
        """Create the container, or adopt ours of that name; refuse it when it is not as asked."""
        network = self._ensured_network()
        if spec.run_id is not None and not self._is_here(network.bridge):
            # The proxy and the firewall rule stand where the bridge was: there is nothing to shut a run in.
            raise EngineUnreachable(
                f"The bridge {network.bridge} of the isolated network is gone: the engine was started anew."
                " The agent has to be restarted."
            )
        series = spec.series if spec.may_join else ""
        with self._connection.client() as client, self._namespaces.lent_to(series) as loan:
            spec = replace(spec, namespace=loan.holder or spec.namespace)
            config = self._config(client, spec, network)
            try:
                made = _created(client, spec, config)
            except _NameTaken:
                made = self._adopted(client, spec, config)
            found = self._describe(client, made)
            joined = joined_namespace(found)
            if _ever_started(found):
                # It is where it was when its agent ended, and the holder may be gone by now.
                config = self._config(client, replace(spec, namespace=joined), network)
            _refuse_if_different(client, found, config)
            loan.container = made if joined == loan.holder else None
            if not _ever_started(found):
                self._never_started.add(made)
        return made

    def _ensured_network(self) -> NetworkFacts:
        try:
            return self._network.ensure_network()
        except ConfigError as error:
            raise StartFailed(f"The isolated network is not as it must be: {error.message}") from error

    def _config(self, client: APIClient, spec: ContainerSpec, network: NetworkFacts) -> dict[str, Any]:
        try:
            image = self._facts_of(client, spec.image_id)
        except NotFound as error:
            raise StartFailed("The image is no longer on this machine.") from error
        return container_config(spec, agent=self._name, network=network, image=image, traits=self._traits)

    @cached_property
    def _traits(self) -> EngineTraits:
        with self._connection.client() as client:
            return traits_of(client)

    @cached_property
    def _describe(self) -> Describe:
        with self._connection.client() as client:
            is_podman = podman.is_podman(client)
        return podman.describe_container if is_podman else _described

    def _adopted(self, client: APIClient, spec: ContainerSpec, config: Mapping[str, Any]) -> ContainerId:
        try:
            found = self._describe(client, spec.name)
        except NotFound:
            return _created(client, spec, config)
        if not self._is_ours(found, spec):
            raise StartFailed(
                f"Another container has the name {spec.name}, and it is not ours.",
                hint="Rename or remove it.",
            )
        if not _ever_started(found) and differences(config, found):
            # Left by an earlier attempt under other settings, and nothing was done in it yet.
            client.remove_container(found["Id"], v=True, force=True)
            return _created(client, spec, config)
        return ContainerId(found["Id"])

    def _is_ours(self, found: Mapping[str, Any], spec: ContainerSpec) -> bool:
        present = found["Config"].get("Labels") or {}
        return labels(self._name, spec).items() <= present.items()

    def ensure_started(self, container: ContainerId) -> None:
        """Start the container unless it ever started.

        Raises NamespaceLost when it was to join a network namespace that is gone: it is removed, and has to be made again.
        """
        with self._connection.client() as client:
            if self._was_started(client, container):
                return
            try:
                _start(client, container)
            except (ContainerLost, StartFailed) as error:
                if not self._namespaces.is_gone(container):
                    raise
                client.remove_container(container, v=True, force=True)
                raise NamespaceLost(
                    "The network namespace that the container was to join is gone."
                ) from error

    def _was_started(self, client: APIClient, container: ContainerId) -> bool:
        """Ask the engine, unless the container was not started when it was made ready, and nobody tried since."""
        if container in self._never_started:
            self._never_started.discard(container)
            return False
        try:
            return _ever_started(client.inspect_container(container))
        except NotFound as error:
            raise ContainerLost("The container is gone.") from error

    def inspect(self, container: ContainerId) -> ContainerReport | None:
        """Say how the container is; None when there is none."""
        with self._connection.client() as client:
            try:
                report = report_of(client.inspect_container(container))
            except NotFound:
                self._namespaces.left(container, ended_well=False)
                return None
            if report.phase is Phase.EXITED:
                self._namespaces.left(container, ended_well=report.exit_code == 0)
            return with_its_end(
                report, partial(_events, client), replays=lambda: not podman.is_podman(client)
            )

    def cpu_seconds(self, container: ContainerId) -> float | None:
        """Return the CPU time that the container has used so far; None when the engine cannot tell."""
        with self._connection.client() as client:
            try:
                found = client.stats(container, stream=False, one_shot=True)
            except (APIError, InvalidVersion):
                return None
        used = found.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage")
        return None if used is None else used / 1e9

    def stop(self, container: ContainerId) -> None:
        """Kill the container's processes at once; already gone is fine."""
        with self._connection.client() as client:
            try:
                client.kill(container, "SIGKILL")
            except APIError as error:
                # Podman says with 500 what is a conflict elsewhere.
                ended = "can only kill running" in str(error.explanation)
                if error.status_code not in {_NOT_FOUND, _CONFLICT} and not ended:
                    raise

    def find_container(self, run_id: RunId) -> ContainerId | None:
        """Find the container of a run by its exact name and our label."""
        with self._connection.client() as client:
            try:
                found = client.inspect_container(run_container_name(self._name, run_id))
            except NotFound:
                return None
        present = found["Config"].get("Labels") or {}
        ours = present.get(LABEL_NAME) == self._name and run_of_labels(present) == run_id
        return ContainerId(found["Id"]) if ours else None

    def copy_log(self, container: ContainerId, into: BinaryIO, *, limit: int, mask: LogMask) -> None:
        """Write the masked log into a file: head and tail, at most *limit* bytes, the cut marked."""
        with self._connection.client() as client:
            # not by the library's own call, which looks first whether the container has a terminal: ours never have
            response = client.get(
                _url(client, f"/containers/{container}/logs"),
                params={"stdout": "1", "stderr": "1"},
                stream=True,
                timeout=client.timeout,
            )
            with response:
                if response.status_code != _NOT_FOUND:
                    response.raise_for_status()
                    copy_cut(mask(blocks_of(response.raw)), into, limit=limit)

    def follow_log(self, container: ContainerId, *, since: str) -> Generator[LogEntry, None, None]:
        """Yield what the container writes after *since*, as it happens, until it ends."""
        with self._connection.client() as client:
            response = client.get(
                _url(client, f"/containers/{container}/logs"),
                params=follow_parameters(since),
                stream=True,
                # An algorithm may be silent for hours; its end, or the engine's, ends the answer.
                timeout=(client.timeout, None),
            )
            # Whoever has read enough must not leave a connection behind that the engine keeps filling.
            with response:
                if response.status_code != _NOT_FOUND:
                    response.raise_for_status()
                    yield from entries_after(since, frames_of(response.raw))

    def remove(self, container: ContainerId) -> None:
        """Remove the container and its anonymous volumes, running or not; already gone is fine."""
        with self._connection.client() as client:
            try:
                client.remove_container(container, v=True, force=True)
            except APIError as error:
                # A conflict is another removal of the same container under way.
                if error.status_code not in {_NOT_FOUND, _CONFLICT}:
                    raise
        self._never_started.discard(container)
        self._namespaces.left(container, ended_well=False)

    def list_containers(self) -> tuple[ContainerReport, ...]:
        """List every container that has our label, but for those that keep the bridge and namespaces."""
        with self._connection.client() as client:
            listed = client.containers(all=True, filters={"label": f"{LABEL_NAME}={self._name}"})
            wanted = [entry for entry in listed if not (entry.get("Labels") or {}).get(LABEL_KEEPER)]
            found = [_inspected(client, entry["Id"]) for entry in wanted]
        return tuple(report_of(description) for description in found if description is not None)

    # --- events -----------------------------------------------------------------------------------------------

    def events(self) -> Iterator[RunId]:
        """Subscribe now, and yield the run of each container of ours that ends or is removed, as it happens."""
        filters = {
            "type": ["container"],
            "event": ["die", "oom", "destroy"],
            "label": [f"{LABEL_NAME}={self._name}"],
        }
        with self._connection.client() as client:
            if podman.is_podman(client):
                # It has other names for events, which its filter knows and its answer does not: a hint too many is no harm.
                del filters["event"]
            response = client.get(
                _url(client, "/events"),
                params={"since": str(int(time.time()) - EVENT_OVERLAP), "filters": json.dumps(filters)},
                stream=True,
                timeout=(client.timeout, None),
            )
            response.raise_for_status()
        return self._runs_of(response)

    def _runs_of(self, response: requests.Response) -> Iterator[RunId]:
        with self._connection.errors(), response:
            for line in response.iter_lines(chunk_size=None):
                run_id = _run_of_event(line)
                if run_id is not None:
                    yield run_id
            raise EngineUnreachable("The stream of engine events ended.")


class _NameTaken(Exception):
    """Another container has the name."""


def _parsed(reference: str) -> ImageName:
    image = parse_image(reference)
    if image is None:
        raise ImageMissing("The task names an image in a form that no registry understands.")
    return image


def _image_ids(client: APIClient) -> frozenset[str]:
    return frozenset(map(str, client.images(quiet=True, all=True)))


def _url(client: APIClient, path: str) -> str:
    return f"{client.base_url}/v{client.api_version}{path}"


def _raise_refused(reference: str, response: requests.Response, account: Account | None) -> None:
    if response.ok:
        return
    try:
        text = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        text = f"the engine answered {response.status_code}"
    finally:
        response.close()
    raise refusal(reference, text, account=account.source if account else "")


def _created(client: APIClient, spec: ContainerSpec, config: Mapping[str, Any]) -> ContainerId:
    try:
        made = client.create_container_from_config(config, spec.name)  # type: ignore[no-untyped-call]
    except APIError as error:
        if error.status_code == _CONFLICT or "already in use" in str(error.explanation):
            raise _NameTaken from error
        if "no such image" in str(error.explanation).lower():
            raise StartFailed("The image is no longer on this machine.") from error
        raise _start_failure("created", error) from error
    return ContainerId(str(made["Id"]))


def _described(client: APIClient, container: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = client.inspect_container(container)
    return found


def _refuse_if_different(client: APIClient, found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    different = differences(config, found)
    if not different:
        return
    if not _ever_started(found):
        client.remove_container(found["Id"], v=True, force=True)
    raise StartFailed(
        f"The engine did not make the container as it was asked to: {'; '.join(different)}.",
        hint="The owner of the node must look at the engine's own settings.",
    )


def _inspected(client: APIClient, container: str) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = client.inspect_container(container)
    except NotFound:
        return None
    return found


def _events(client: APIClient, parameters: Mapping[str, str]) -> bytes:
    until_now = {"until": f"{time.time():.3f}"}
    response = client.get(_url(client, "/events"), params={**until_now, **parameters}, timeout=client.timeout)
    return bytes(response.content)


def _ever_started(found: Mapping[str, Any]) -> bool:
    return seconds_of(found["State"].get("StartedAt")) is not None


def _start(client: APIClient, container: ContainerId) -> None:
    try:
        client.start(container)
    except APIError as error:
        if error.status_code == _NOT_FOUND and "no such container" in str(error.explanation).lower():
            raise ContainerLost("The container is gone.") from error
        if any(words in engine_text(error).lower() for words in _NO_GPU):
            raise StartFailed(
                f"This node gives the image a GPU (policy.gpu), and its engine has none: {engine_text(error)}.",
                hint="The owner of the node must install the engine's support for GPUs, or leave the image out.",
            ) from error
        raise _start_failure("started", error) from error


def _start_failure(what: str, error: APIError) -> StartFailed | EngineUnreachable:
    said = engine_text(error)
    if any(words in said.lower() for words in _PASSING):
        return EngineUnreachable(f"The engine cannot have the container {what} now: {said}.")
    # what an image keeps below /root is closed to a user without rights
    hint = _NO_RIGHTS if "permission denied" in said.lower() else ""
    return StartFailed(f"The container could not be {what}: {said}.", hint=hint)


def _run_of_event(line: bytes) -> RunId | None:
    try:
        said = json.loads(line)
        return run_of_labels(said["Actor"]["Attributes"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
