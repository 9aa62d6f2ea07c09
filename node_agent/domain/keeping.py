"""What may go from the engine: images that this agent pulled and nobody needs any more.

An image that was on the machine before is not in the list of pulled ones, so it is never looked at here. Times are
seconds since the epoch. Must not know engines or files.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

RECENT_SECONDS = 3600.0
"""An image used so lately stays also when the disk is full: it would only be pulled again."""


class Why(StrEnum):
    """Why something goes."""

    ORPHAN = "no open run owns it"
    EXPIRED = "kept long enough"
    UNUSED = "not used for long"
    DISK_PRESSURE = "the disk of the engine is too full"


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledImage:
    """An image that came to this machine because this agent pulled it, under one of its names."""

    image_id: str
    reference: str
    """What was asked for: `name:tag` or `name@digest`."""
    digest: str | None
    pulled_at: float
    used_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUse:
    """How full a disk is, in bytes."""

    used: int
    total: int

    def excess(self, percent: int) -> int:
        """Give the bytes that must go for the disk to be no fuller than *percent*."""
        return max(0, self.used - self.total * percent // 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageKeeping:
    """How long images stay that this agent pulled."""

    seconds: float
    disk_pressure: int
    """In percent of the disk the engine keeps images on."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """One image that goes, with all the names it was pulled under, and why."""

    names: tuple[PulledImage, ...]
    why: Why

    @property
    def image_id(self) -> str:
        """Give the id of its content."""
        return self.names[0].image_id


def leaving_images(
    pulled: Iterable[PulledImage],
    *,
    sizes: dict[str, int],
    disk: DiskUse | None,
    keeping: ImageKeeping,
    now: float,
) -> Iterator[Leaving]:
    """Choose what goes, the longest unused first: everything too old, then as much as the disk is too full.

    *sizes* are those of the images on this machine. A disk that cannot be seen is never too full.
    """
    excess = 0 if disk is None else disk.excess(keeping.disk_pressure)
    for names in _by_last_use(pulled):
        unused_for = now - _last_use(names)
        if unused_for >= keeping.seconds:
            yield Leaving(names, Why.UNUSED)
        elif excess > 0 and unused_for >= RECENT_SECONDS:
            yield Leaving(names, Why.DISK_PRESSURE)
        else:
            return
        excess -= sizes.get(names[0].image_id, 0)


def _by_last_use(pulled: Iterable[PulledImage]) -> list[tuple[PulledImage, ...]]:
    in_order = sorted(pulled, key=lambda image: (image.image_id, image.reference))
    images = [tuple(names) for _, names in groupby(in_order, key=lambda image: image.image_id)]
    return sorted(images, key=_last_use)


def _last_use(names: Sequence[PulledImage]) -> float:
    return max(name.used_at for name in names)
