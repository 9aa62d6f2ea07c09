"""Which engine the tests may work with, as it describes itself; the descriptions are those of real engines, shortened."""

import pytest

from tests.lab.engine import unfit

DOCKER = {"Name": "Engine", "Version": "26.1.5"}
PODMAN = {"Name": "Podman Engine", "Version": "4.3.1"}


@pytest.mark.parametrize(("version", "api"), [("20.10.24", "1.41"), ("26.1.5", "1.45"), ("28.5.2", "1.51")])
def test_a_docker_engine_that_is_new_enough_is_taken(version, api):
    described = {"Components": [DOCKER], "ApiVersion": api, "Version": version}
    assert unfit(described, {"SecurityOptions": ["name=seccomp,profile=default"]}) == ""


def test_podman_in_the_place_of_docker_is_named():
    reason = unfit({"Components": [PODMAN], "ApiVersion": "1.41", "Version": "4.3.1"}, {})
    assert "is Podman" in reason
    assert "systemctl stop podman.socket" in reason


def test_an_engine_that_is_too_old_is_named_with_its_version():
    reason = unfit({"Components": [DOCKER], "ApiVersion": "1.40", "Version": "19.03.15"}, {})
    assert "Docker 19.03.15" in reason
    assert "20.10 or newer" in reason


def test_an_engine_without_root_is_named():
    described = {"Components": [DOCKER], "ApiVersion": "1.41", "Version": "20.10.24"}
    assert "without root" in unfit(described, {"SecurityOptions": ["name=seccomp", "name=rootless"]})


def test_an_engine_that_says_nothing_of_itself_is_not_taken():
    assert "20.10 or newer" in unfit({}, {})
