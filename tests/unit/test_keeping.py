"""Which images go: the longest unused first, by age and by disk pressure, and never one too many."""

from collections.abc import Sequence

import pytest

from node_agent.domain.keeping import (
    RECENT_SECONDS,
    DiskUse,
    ImageKeeping,
    PulledImage,
    Why,
    leaving_images,
)

NOW = 1_700_000_000.0
DAY = 86_400.0
KEEPING = ImageKeeping(seconds=30 * DAY, disk_pressure=85)


def image(name: str, *, unused_for: float, reference: str = "") -> PulledImage:
    return PulledImage(
        image_id=name,
        reference=reference or f"r/{name}:1",
        digest=None,
        pulled_at=0.0,
        used_at=NOW - unused_for,
    )


def gone(
    *pulled: PulledImage,
    disk: DiskUse | None = None,
    sizes: dict[str, int] | None = None,
    keeping: ImageKeeping = KEEPING,
) -> Sequence[tuple[str, Why]]:
    leaving = leaving_images(pulled, sizes=sizes or {}, disk=disk, keeping=keeping, now=NOW)
    return [(each.image_id, each.why) for each in leaving]


def test_an_image_goes_when_it_was_not_used_for_as_long_as_the_owner_says() -> None:
    assert gone(image("old", unused_for=30 * DAY), image("young", unused_for=30 * DAY - 1)) == [
        ("old", Why.UNUSED)
    ]


def test_an_image_with_several_names_counts_by_the_last_use_of_any() -> None:
    names = (
        image("a", unused_for=90 * DAY, reference="r/a:1"),
        image("a", unused_for=DAY, reference="r/a:2"),
    )
    assert gone(*names) == []
    assert gone(*names, keeping=ImageKeeping(seconds=DAY, disk_pressure=85)) == [("a", Why.UNUSED)]


def test_a_disk_too_full_takes_the_longest_unused_until_it_is_not() -> None:
    images = [image(str(days), unused_for=days * DAY) for days in (1, 4, 2, 3)]
    disk = DiskUse(used=90, total=100)
    assert gone(*images, disk=disk, sizes=dict.fromkeys("1234", 3)) == [
        ("4", Why.DISK_PRESSURE),
        ("3", Why.DISK_PRESSURE),
    ]


def test_what_goes_by_age_relieves_the_disk_too() -> None:
    images = [image("old", unused_for=31 * DAY), image("young", unused_for=DAY)]
    disk = DiskUse(used=90, total=100)
    assert gone(*images, disk=disk, sizes={"old": 5}) == [("old", Why.UNUSED)]


def test_a_full_disk_leaves_what_was_used_a_moment_ago() -> None:
    full = DiskUse(used=100, total=100)
    recent, older = (
        image("recent", unused_for=RECENT_SECONDS - 1),
        image("older", unused_for=RECENT_SECONDS),
    )
    assert gone(recent, older, disk=full) == [("older", Why.DISK_PRESSURE)]


@pytest.mark.parametrize("disk", [None, DiskUse(used=85, total=100)])
def test_a_disk_that_is_not_too_full_or_not_to_be_seen_takes_nothing(disk: DiskUse | None) -> None:
    assert gone(image("a", unused_for=29 * DAY), disk=disk) == []
