"""What an agent may have left on the engine beside its runs: probes, networks, volumes, and the images it pulled.

Owns listing and removing them. Only what carries the label of exactly this agent is touched, and of images only the
names this agent pulled, without force: whatever the engine or anybody else still needs, stays. Must not know why
something is to go.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from docker import APIClient
from docker.errors import APIError, NotFound

from node_agent.domain.keeping import DiskUse, PulledImage
from node_agent.domain.policy import parse_image
from node_agent.domain.ports import ImageRemoval, Leftover
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.host import host_of
from node_agent.runtime.reading import seconds_of
from node_agent.runtime.spec import LABEL_NAME, LABEL_PROBE

YOUNG_SECONDS = 600.0
"""What is younger may belong to something that goes on: a check, a start."""
_REFUSALS = frozenset({403, 409})
"""How engines say that something is in use."""


class EngineRemains:
    """What the agent *name* left on one engine; its isolated network *network* stays."""

    def __init__(
        self,
        name: str,
        connection: EngineConnection,
        *,
        network: str,
        looking_up: threading.Lock,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._name = name
        self._connection = connection
        self._network = network
        self._looking_up = looking_up
        self._now = now

    # --- containers, networks, volumes --------------------------------------------------------------------------

    def leftovers(self) -> tuple[Leftover, ...]:
        """List what carries our label and nothing needs; young ones are left out."""
        ours = {"label": f"{LABEL_NAME}={self._name}"}
        with self._connection.client() as client:
            return (
                *self._probes(client.containers(all=True, filters=ours)),
                *self._networks(client, client.networks(filters=ours)),
                *self._volumes(client.volumes(filters=ours).get("Volumes") or ()),
            )

    def _probes(self, listed: Iterable[Mapping[str, Any]]) -> Iterator[Leftover]:
        for entry in listed:
            marked = bool((entry.get("Labels") or {}).get(LABEL_PROBE))
            if marked and self._is_ours(entry) and self._is_old(float(entry.get("Created") or self._now())):
                name = next(iter(entry.get("Names") or ()), entry["Id"])
                yield Leftover(kind="container", id=str(entry["Id"]), name=str(name).lstrip("/"))

    def _networks(self, client: APIClient, listed: Iterable[Mapping[str, Any]]) -> Iterator[Leftover]:
        for entry in listed:
            if entry["Name"] == self._network or not self._is_ours(entry):
                continue
            if self._is_old(seconds_of(entry.get("Created"))) and not _attached(client, entry["Id"]):
                yield Leftover(kind="network", id=str(entry["Id"]), name=str(entry["Name"]))

    def _volumes(self, listed: Iterable[Mapping[str, Any]]) -> Iterator[Leftover]:
        for entry in listed:
            if self._is_ours(entry) and self._is_old(seconds_of(entry.get("CreatedAt"))):
                yield Leftover(kind="volume", id=str(entry["Name"]), name=str(entry["Name"]))

    def _is_ours(self, entry: Mapping[str, Any]) -> bool:
        # engines differ in what a filter by label finds
        return (entry.get("Labels") or {}).get(LABEL_NAME) == self._name

    def _is_old(self, made_at: float | None) -> bool:
        return made_at is not None and made_at < self._now() - YOUNG_SECONDS

    def remove_leftover(self, leftover: Leftover) -> bool:
        """Remove it unless something uses it; say whether it is gone."""
        with self._connection.client() as client:
            remove: Mapping[str, Callable[[], Any]] = {
                "container": lambda: client.remove_container(leftover.id, v=True, force=True),
                "network": lambda: client.remove_network(leftover.id),
                "volume": lambda: client.remove_volume(leftover.id),
            }
            return _unless_refused(remove[leftover.kind])

    # --- images -------------------------------------------------------------------------------------------------

    def image_sizes(self) -> dict[str, int]:
        """Give the bytes of every image on this machine, by its id."""
        with self._connection.client() as client:
            return {str(entry["Id"]): int(entry.get("Size") or 0) for entry in client.images()}

    def used_images(self) -> frozenset[str]:
        """Give the ids of the images that any container is made from, whoever made it."""
        with self._connection.client() as client:
            return _used_images(client)

    def disk(self) -> DiskUse | None:
        """Say how full the disk is that the engine keeps images on; None when that cannot be seen from here."""
        data_root = host_of(self._connection).data_root
        return None if data_root is None else disk_of(data_root)

    def remove_image(self, names: Iterable[PulledImage], *, needed: Callable[[], bool]) -> ImageRemoval:
        """Take the names away that this agent gave one image, and with the last of all names the image."""
        names = tuple(names)
        image_id = names[0].image_id
        # a step that finds the image after this has its run in the books before: either is seen
        with self._looking_up, self._connection.client() as client:
            if needed() or image_id in _used_images(client):
                return ImageRemoval.IN_USE
            for reference in _references(names):
                if not _without_name(client, reference, image_id):
                    return ImageRemoval.IN_USE
            return _last_of(client, image_id)


def disk_of(folder: Path) -> DiskUse | None:
    """Say how full the disk of a folder is; None when it is not to be seen."""
    try:
        seen = shutil.disk_usage(folder)
    except OSError:
        return None
    return DiskUse(used=seen.used, total=seen.used + seen.free)


def _attached(client: APIClient, network: str) -> bool:
    try:
        return bool(client.inspect_network(network).get("Containers"))
    except NotFound:
        return False


def _used_images(client: APIClient) -> frozenset[str]:
    return frozenset(str(entry.get("ImageID")) for entry in client.containers(all=True))


def _references(names: Iterable[PulledImage]) -> list[str]:
    """Give every name the pulls made, those by digest last: the engine takes them away with the last tag."""
    asked = dict.fromkeys(name.reference for name in names)
    by_digest = dict.fromkeys(filter(None, map(_by_digest, names)))
    return [*(name for name in asked if name not in by_digest), *by_digest]


def _by_digest(name: PulledImage) -> str | None:
    image = parse_image(name.reference)
    return None if image is None or name.digest is None else f"{image.name}@{name.digest}"


def _without_name(client: APIClient, reference: str, image_id: str) -> bool:
    """Take one name away if it still means this image; False when the engine refuses."""
    if _id_of(client, reference) != image_id:
        return True
    return _unless_refused(lambda: client.remove_image(reference, force=False, noprune=True))


def _last_of(client: APIClient, image_id: str) -> ImageRemoval:
    """Remove what has no name left; what has one is somebody else's."""
    try:
        found = client.inspect_image(image_id)  # type: ignore[no-untyped-call]
    except NotFound:
        return ImageRemoval.GONE
    if found.get("RepoTags") or found.get("RepoDigests"):
        return ImageRemoval.TAKEN_OVER
    gone = _unless_refused(lambda: client.remove_image(image_id, force=False, noprune=True))
    return ImageRemoval.GONE if gone else ImageRemoval.IN_USE


def _id_of(client: APIClient, reference: str) -> str | None:
    try:
        return str(client.inspect_image(reference)["Id"])  # type: ignore[no-untyped-call]
    except NotFound:
        return None


def _unless_refused(remove: Callable[[], Any]) -> bool:
    """Remove something; already gone is fine, and False says that something uses it."""
    try:
        remove()
    except NotFound:
        return True
    except APIError as error:
        if error.status_code in _REFUSALS:
            return False
        raise
    return True
