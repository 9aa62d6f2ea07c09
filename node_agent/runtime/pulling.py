"""What a pull says while it goes on: progress, the digest it announces, and what its complaints mean.

Owns the words of engines and registries about images. Must not talk to either.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from node_agent.domain.container import PullBounds, PullProgress
from node_agent.domain.policy import DIGEST, ImageName
from node_agent.errors import EngineDiskFull, ImageMissing, NodeAgentError, RegistryUnreachable
from node_agent.runtime.connection import one_line, readable

_UP_TO_DATE = "Status: Image is up to date"
_FETCHING = frozenset({"Pulling fs layer", "Downloading", "Download complete", "Pull complete"})
_DISK_FULL = ("no space left on device", "disk quota exceeded")
_REGISTRY_AWAY = (
    "no such host",
    "connection refused",
    "connection reset",
    "i/o timeout",
    "timeout",
    "deadline exceeded",
    "x509",
    "tls:",
    "eof",
    "server gave http response",
    "received unexpected http status: 5",
    "toomanyrequests",
    "too many requests",
    "network is unreachable",
    "no route to host",
    "service unavailable",
)
_DENIED = ("denied", "unauthorized", "authentication required", "no basic auth credentials", "forbidden")
_MISSING = (
    "not found",
    "manifest unknown",
    "name unknown",
    "does not exist",
    "invalid reference",
    "no matching manifest",
    "no such image",
    "repository name",
    "unsupported",
    "mediatype",
)


def exact_reference(image: ImageName) -> str:
    """Write an image name the way the engine looks it up: a digest decides over a tag."""
    if image.digest is not None:
        return f"{image.name}@{image.digest}"
    return f"{image.name}:{image.tag or 'latest'}"


def refusal(reference: str, text: str, *, account: str = "") -> NodeAgentError:
    """Turn a complaint about pulling *reference* into the error that says who must act.

    *account* says where the account came from that the registry was asked with; empty when with none.
    """
    said, words = readable(text), text.lower()
    if _any(words, _DISK_FULL):
        return EngineDiskFull(
            f"The engine has no room for the image {reference}: {said}.",
            hint="Free space where it keeps images.",
        )
    # Denied first: some registries put a link with "not found" or a port in the same sentence.
    if _any(words, _DENIED):
        return ImageMissing(
            f"The registry does not hand out the image {reference}: {said}.", hint=_advice(account)
        )
    if _any(words, _REGISTRY_AWAY):
        return RegistryUnreachable(f"The registry of {reference} does not answer: {said}.")
    if _any(words, _MISSING):
        return ImageMissing(
            f"There is no image {reference}: {said}.", hint="Is the name right, was it pushed?"
        )
    return RegistryUnreachable(f"The image {reference} could not be pulled: {said}.")


def _advice(account: str) -> str:
    if account:
        return (
            f"This node has a login for the registry ({account}), which is wrong, has expired, or may not read this image: "
            "the owner of the node must look at it."
        )
    return (
        "Is the name right? If the image is private, the node needs a login for the registry"
        " (images.registries, images.docker_config)."
    )


def _any(text: str, parts: Sequence[str]) -> bool:
    return any(part in text for part in parts)


@dataclass
class PullStory:
    """What the lines of one pull have said so far."""

    reference: str
    account: str = ""
    digest: str | None = None
    is_up_to_date: bool = False
    """The engine had under this name what the registry has."""
    has_fetched: bool = False
    """A layer came that was not on this machine: so no image was that has it."""
    _layers: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def progress(self) -> PullProgress:
        """Sum what the layers have received and need."""
        return PullProgress(
            current=sum(current for current, _ in self._layers.values()),
            total=sum(total for _, total in self._layers.values()),
        )

    def read(self, line: bytes) -> None:
        """Take in one line; a complaint is raised as the error it means."""
        said = _decoded(line)
        if "error" in said or "errorDetail" in said:
            raise refusal(self.reference, _complaint(said), account=self.account)
        status = str(said.get("status", ""))
        self.is_up_to_date = self.is_up_to_date or status.startswith(_UP_TO_DATE)
        self.has_fetched = self.has_fetched or status in _FETCHING
        if status.startswith("Digest: "):
            self.digest = status.removeprefix("Digest: ").strip()
        elif status == "Downloading":
            self._count(said)
        elif status in {"Download complete", "Pull complete"} and said.get("id") in self._layers:
            total = self._layers[said["id"]][1]
            self._layers[said["id"]] = (total, total)

    def _count(self, said: dict[str, Any]) -> None:
        detail = said.get("progressDetail")
        if not isinstance(detail, dict) or not isinstance(detail.get("current"), int):
            return
        current = detail["current"]
        total = detail.get("total")
        self._layers[str(said.get("id"))] = (current, total if isinstance(total, int) else current)


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _complaint(said: dict[str, Any]) -> str:
    detail = said.get("errorDetail")
    text = detail.get("message") if isinstance(detail, dict) else None
    return str(text or said.get("error") or "no reason given")


class PullGuard:
    """Calls a pull off that takes more of the disk than it may."""

    def __init__(self, reference: str, bounds: PullBounds) -> None:
        self._reference = reference
        self._bounds = bounds
        self._free_at_first = bounds.free()

    def check(self, progress: PullProgress) -> None:
        """Check a pull that goes on. Raises ImageMissing."""
        # no engine says how large a layer becomes: what is known is its packed size, and what the disk loses
        self.check_size(progress.total)
        free = self._bounds.free()
        if free is None:
            return
        if free < self._bounds.least_free:
            raise ImageMissing(
                f"The pull of {self._reference} was called off: it left {free:,} bytes on the disk of this node's "
                f"engine, where {self._bounds.least_free:,} stay free (limits.min_free_disk).",
                hint=_SMALLER,
            )
        if self._free_at_first is not None:
            # the packed layers lie beside the unpacked ones for a while
            self.check_size(self._free_at_first - free - progress.total)

    def check_size(self, size: int) -> None:
        """Check the size of what came, or a size that it has at least. Raises ImageMissing."""
        if self._bounds.max_size is not None and size > self._bounds.max_size:
            raise ImageMissing(
                f"The image {self._reference} is too large for this node: it takes {size:,} bytes or more, and "
                f"{self._bounds.max_size:,} are allowed (images.max_size).",
                hint=_SMALLER,
            )


_SMALLER = "Make the image smaller, or ask the owner of the node."


def verified_digest(image: ImageName, announced: str | None, repo_digests: Sequence[str]) -> str:
    """Give the digest the pulled image must have, after checking that the engine has exactly that."""
    expected = image.digest or announced
    present = {entry.rpartition("@")[2] for entry in repo_digests}
    if expected is None or not DIGEST.match(expected):
        raise RegistryUnreachable(f"The pull of {image.name} ended without a digest to check it by.")
    if image.digest is not None and announced not in {None, image.digest}:
        raise ImageMissing(
            f"The registry announced {one_line(str(announced))} where {image.digest} of {image.name} was asked for."
        )
    if expected not in present:
        raise RegistryUnreachable(
            f"The image {image.name} on this machine is not the one just pulled ({expected})."
        )
    return expected


def known_digest(image: ImageName, repo_digests: Sequence[str]) -> str | None:
    """Choose, of the digests an image is known by, the one under the name asked for."""
    if image.digest is not None:
        return image.digest
    own = [
        entry for entry in repo_digests if _plain_name(entry.rpartition("@")[0]) == _plain_name(image.name)
    ]
    entry = next(iter(own or repo_digests), None)
    return entry.rpartition("@")[2] if entry else None


def _plain_name(name: str) -> str:
    return name.removeprefix("index.docker.io/").removeprefix("docker.io/").removeprefix("library/")
