import base64
import json

import pytest

from node_agent.domain.container import PullBounds, PullProgress
from node_agent.domain.policy import ImageName, parse_image
from node_agent.domain.secret import Secret
from node_agent.errors import EngineDiskFull, ImageMissing, NodeAgentError, RegistryUnreachable
from node_agent.runtime.pulling import (
    PullGuard,
    PullStory,
    exact_reference,
    known_digest,
    refusal,
    verified_digest,
)
from node_agent.runtime.registries import RegistryAccounts, registry_of

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


class Login:
    host = "registry.example.org"
    username = "node"
    password = Secret("not shown")


def image(reference: str) -> ImageName:
    parsed = parse_image(reference)
    assert parsed is not None
    return parsed


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("manifest for x:1 not found: manifest unknown: manifest unknown", ImageMissing),
        ("pull access denied for x, repository does not exist or may require 'docker login'", ImageMissing),
        ("unauthorized: authentication required", ImageMissing),
        ("invalid reference format", ImageMissing),
        ("no matching manifest for linux/amd64 in the manifest list entries", ImageMissing),
        ('Get "https://r/v2/": dial tcp: lookup r on 127.0.0.53:53: no such host', RegistryUnreachable),
        (
            'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused',
            RegistryUnreachable,
        ),
        ("x509: certificate signed by unknown authority", RegistryUnreachable),
        ("received unexpected HTTP status: 503 Service Unavailable", RegistryUnreachable),
        ("toomanyrequests: you have reached your pull rate limit", RegistryUnreachable),
        ("a sentence nobody has seen before", RegistryUnreachable),
        ("failed to register layer: write /x: no space left on device", EngineDiskFull),
    ],
)
def test_a_complaint_says_who_must_act(text: str, error: type[NodeAgentError]) -> None:
    assert type(refusal("x:1", text)) is error


def test_a_complaint_is_bounded_and_on_one_line() -> None:
    message = refusal("x:1", "bad\nnews\x1b[31m " + "y" * 5000).message
    assert "\n" not in message
    assert "\x1b" not in message
    assert len(message) < 500


def test_a_story_sums_the_layers() -> None:
    story = PullStory("x:1")
    for layer, current, total in [("a", 10, 100), ("b", 5, 50), ("a", 60, 100)]:
        story.read(line(status="Downloading", id=layer, progressDetail={"current": current, "total": total}))
    assert story.progress == PullProgress(current=65, total=150)
    story.read(line(status="Download complete", id="a"))
    assert story.progress == PullProgress(current=105, total=150)


def test_a_story_remembers_the_announced_digest() -> None:
    story = PullStory("x:1")
    story.read(line(status=f"Digest: {DIGEST}"))
    assert story.digest == DIGEST


def test_a_story_knows_when_the_name_meant_this_content_before() -> None:
    story = PullStory("x:1")
    story.read(line(status="Status: Image is up to date for x:1"))
    assert story.is_up_to_date
    assert not story.has_fetched
    newer = PullStory("x:1")
    newer.read(line(status="Status: Downloaded newer image for x:1"))
    assert not newer.is_up_to_date


def test_only_a_layer_that_was_not_here_counts_as_fetched() -> None:
    story = PullStory("x:1")
    for status in ("Pulling from x", "Already exists", f"Digest: {DIGEST}", "Status: Image is up to date"):
        story.read(line(status=status, id="a"))
    assert not story.has_fetched
    story.read(line(status="Pulling fs layer", id="b"))
    story.read(line(status="Already exists", id="c"))
    assert story.has_fetched


def test_an_error_in_the_middle_of_a_story_is_raised() -> None:
    with pytest.raises(ImageMissing, match="manifest unknown"):
        PullStory("x:1").read(line(errorDetail={"message": "manifest unknown"}, error="manifest unknown"))


@pytest.mark.parametrize(
    "odd",
    [
        b"not json",
        b"[1, 2]",
        b"null",
        b'{"status": 7}',
        b'{"status": "Downloading", "progressDetail": 3}',
        b'{"status": "Downloading", "id": {}, "progressDetail": {"current": "many"}}',
    ],
)
def test_odd_lines_are_passed_over(odd: bytes) -> None:
    story = PullStory("x:1")
    story.read(odd)
    assert story.progress == PullProgress(current=0, total=0)


def test_the_digest_the_registry_announced_must_be_there() -> None:
    assert verified_digest(image("x/y:1"), DIGEST, [f"x/y@{DIGEST}", f"x/y@{OTHER}"]) == DIGEST
    with pytest.raises(RegistryUnreachable, match="not the one just pulled"):
        verified_digest(image("x/y:1"), DIGEST, [f"x/y@{OTHER}"])


def test_a_pull_without_any_digest_is_not_trusted() -> None:
    with pytest.raises(RegistryUnreachable, match="without a digest"):
        verified_digest(image("x/y:1"), None, [f"x/y@{DIGEST}"])
    with pytest.raises(RegistryUnreachable, match="without a digest"):
        verified_digest(image("x/y:1"), "md5:1", ["x/y@md5:1"])


def test_another_digest_than_the_one_asked_for_is_refused() -> None:
    with pytest.raises(ImageMissing, match="was asked for"):
        verified_digest(image(f"x/y@{DIGEST}"), OTHER, [f"x/y@{OTHER}"])


def test_the_digest_under_the_name_asked_for_is_preferred() -> None:
    digests = [f"mirror.example.org/y@{OTHER}", f"x/y@{DIGEST}"]
    assert known_digest(image("docker.io/x/y:1"), digests) == DIGEST
    assert known_digest(image("z/y:1"), digests) == OTHER
    assert known_digest(image("local:1"), []) is None
    assert known_digest(image(f"x/y@{DIGEST}"), [f"x/y@{DIGEST}"]) == DIGEST


def test_a_digest_decides_over_a_tag() -> None:
    assert exact_reference(image(f"x/y:1@{DIGEST}")) == f"x/y@{DIGEST}"
    assert exact_reference(image("x/y")) == "x/y:latest"


@pytest.mark.parametrize(
    ("reference", "host"),
    [
        ("alpine", "docker.io"),
        ("group/alpine:3", "docker.io"),
        ("localhost/alpine", "localhost"),
        ("localhost:5000/alpine", "localhost:5000"),
        ("registry.example.org/a/b:1", "registry.example.org"),
    ],
)
def test_the_registry_is_the_first_part_of_a_name(reference: str, host: str) -> None:
    assert registry_of(image(reference)) == host


def test_a_login_is_sent_to_its_own_registry_only() -> None:
    accounts = RegistryAccounts([Login()])
    found = accounts.account_for("registry.example.org")
    assert found is not None
    assert "not shown" not in repr(found)
    assert json.loads(base64.urlsafe_b64decode(found.header["X-Registry-Auth"])) == {
        "username": "node",
        "password": "not shown",
        "serveraddress": "registry.example.org",
    }
    assert accounts.account_for("elsewhere.example.org") is None


def line(**said: object) -> bytes:
    return json.dumps(said).encode()


# --- what a pull may take -----------------------------------------------------------------------------------------


def frees(*bytes_free: int | None) -> PullBounds:
    """Bound a pull on a disk that has these bytes free, one after the other."""
    found = iter(bytes_free)
    return PullBounds(max_size=1000, least_free=100, free=lambda: next(found))


def test_a_pull_within_its_bounds_goes_on() -> None:
    guard = PullGuard("average", frees(5000, 4500, 3600))
    guard.check(PullProgress(current=10, total=500))
    guard.check(PullProgress(current=500, total=500))
    guard.check_size(1000)


def test_a_pull_is_called_off_by_its_packed_size_as_soon_as_that_is_known() -> None:
    with pytest.raises(
        ImageMissing, match=r"1,001 bytes or more, and 1,000 are allowed \(images\.max_size\)"
    ):
        PullGuard("average", frees(5000)).check(PullProgress(current=1, total=1001))


def test_a_pull_is_called_off_when_the_disk_loses_more_than_an_image_may_take() -> None:
    guard = PullGuard("average", frees(5000, 3900, 3799))
    guard.check(PullProgress(current=100, total=200))
    with pytest.raises(ImageMissing, match=r"images\.max_size"):
        guard.check(PullProgress(current=200, total=200))


def test_a_pull_is_called_off_when_too_little_is_left_for_everybody_else() -> None:
    with pytest.raises(ImageMissing, match=r"left 99 bytes .* 100 stay free \(limits\.min_free_disk\)"):
        PullGuard("average", frees(150, 99)).check(PullProgress(current=1, total=1))


@pytest.mark.parametrize("bounds", [PullBounds(), frees(None, None)])
def test_a_disk_that_is_not_to_be_seen_and_no_bounds_call_nothing_off(bounds: PullBounds) -> None:
    PullGuard("average", bounds).check(PullProgress(current=1, total=1000))
