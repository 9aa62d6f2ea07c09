"""Which images get the machine's GPUs. Nothing listed: none."""

from collections.abc import Iterable

from node_agent.domain.patterns import image_matches
from node_agent.domain.policy import ImageName, parse_image


def gets_gpus(reference: str, patterns: Iterable[str], *, digest: str | None) -> bool:
    """Tell whether a pattern names this image; *digest* is what it was pinned to."""
    image = parse_image(reference)
    return image is not None and any(_names(pattern, image, digest) for pattern in patterns)


def _names(pattern: str, image: ImageName, digest: str | None) -> bool:
    name, at, content = pattern.partition("@")
    return image_matches(name, image.name) and (not at or content == digest)
