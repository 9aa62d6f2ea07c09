"""What tests/lab/setup.sh says about machines that it cannot prepare; its functions are called by themselves."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "lab" / "setup.sh"


def setup(code: str, tmp_path: Path, **programs: str) -> "subprocess.CompletedProcess[str]":
    """Run *code* after reading the script's functions, with programs of the test's own before the machine's."""
    for name, body in programs.items():
        program = tmp_path / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    return subprocess.run(
        ["bash", "-c", f'source "{SCRIPT}"; {code}'],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("package", ["docker-ce-cli", "containerd.io"])
def test_dockers_own_packages_are_not_replaced(tmp_path, package):
    found = setup(
        "check_other_engines docker.io nftables",
        tmp_path,
        dpkg_query=f'[ "$4" = {package} ] && printf "ii " || exit 1',
    )
    assert found.returncode == 1
    assert f"{package} is here" in found.stderr
    assert "apt-get install docker-ce" in found.stderr


def test_a_podman_that_calls_itself_docker_is_named(tmp_path):
    found = setup(
        "check_other_engines docker.io",
        tmp_path,
        dpkg_query='[ "$4" = podman-docker ] && printf "ii " || exit 1',
    )
    assert found.returncode == 1
    assert "apt-get remove podman-docker" in found.stderr


def test_other_engines_are_no_matter_where_docker_is_not_installed(tmp_path):
    found = setup("check_other_engines nftables", tmp_path, dpkg_query='printf "ii "')
    assert (found.returncode, found.stderr) == (0, "")


def test_a_full_disk_is_told_before_anything_is_installed(tmp_path):
    found = setup("check_space 8", tmp_path, df='echo head; echo "/dev/x 9 9 3145728 1% /"')
    assert found.returncode == 1
    assert "only 3 GiB are free" in found.stderr
    assert "8 GiB are needed" in found.stderr


def test_a_missing_right_is_told_with_what_is_missing(tmp_path):
    found = setup("need_root ' acl squid'", tmp_path, id="echo 1000", sudo="exit 1")
    assert found.returncode == 1
    assert "missing Debian packages: acl squid" in found.stderr
    assert "run this as root" in found.stderr


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("E: Temporary failure resolving 'packages.example'", "package sources are not reached"),
        ("NewConnectionError: Failed to establish a new connection", "package sources are not reached"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend", "another installation is under way"),
        ("E: Unable to correct problems, you have held broken packages", "its log says why"),
    ],
)
def test_the_cause_of_a_failed_installation_is_named(tmp_path, line, cause):
    log = tmp_path / "log"
    log.write_text(f"Reading package lists...\n{line}\n")
    assert cause in setup(f"cause_in {log}", tmp_path).stdout
