import pytest

from node_agent.domain.container import ContainerLimits
from node_agent.domain.symptoms import FULL_DISK, likely_limit

LIMITS = ContainerLimits(cpus=1, memory=1 << 20, pids=40, tmp_size=2 << 20, file_size=3 << 20, open_files=64)


@pytest.mark.parametrize(
    ("said", "setting"),
    [
        ("OSError: [Errno 27] File too large", "limits.output_size"),
        ("BlockingIOError: [Errno 11] Resource temporarily unavailable", "limits.pids"),
        ("RuntimeError: can't start new thread", "limits.pids"),
        ("OSError: [Errno 28] No space left on device", "limits.tmp_size"),
        ("OSError: [Errno 24] Too many open files", "limits.open_files"),
        ("Error: cannot allocate vector of size 7.5 Gb", "limits.memory"),
        ("OSError: [Errno 30] Read-only file system: '/out'", "/mnt/tmp"),
        ("PermissionError: [Errno 13] Permission denied: '/root/model.bin'", "hardening.relax"),
        ("chown: changing ownership of '/data': Operation not permitted", "hardening.relax"),
        ("socket.gaierror: [Errno -3] Temporary failure in name resolution", "proxy"),
    ],
)
def test_the_words_of_a_crash_point_to_the_limit_behind_it(said: str, setting: str) -> None:
    assert setting in likely_limit(f"Traceback\n{said}\n", LIMITS, free_disk=FULL_DISK)


def test_a_crash_for_its_own_reasons_points_to_no_limit() -> None:
    assert likely_limit("ZeroDivisionError: division by zero", LIMITS, free_disk=0) == ""


def test_an_algorithm_that_found_the_nodes_disk_full_is_not_told_of_its_own_limits() -> None:
    told = likely_limit("OSError: [Errno 28] No space left on device", LIMITS, free_disk=FULL_DISK - 1)
    assert "the disk of this node is full" in told
    assert "limits." not in told


def test_a_file_on_the_nodes_disk_tells_that_the_disk_was_full_also_when_there_is_space_again() -> None:
    said = "OSError: [Errno 28] No space left on device: '/mnt/tmp/model'"
    assert "the disk of this node is full" in likely_limit(said, LIMITS, free_disk=FULL_DISK)
    elsewhere = said.replace("/mnt/tmp", "/tmp")
    assert "limits.tmp_size" in likely_limit(elsewhere, LIMITS, free_disk=FULL_DISK)


def test_two_limits_are_both_named() -> None:
    told = likely_limit("Too many open files\nNo space left on device", LIMITS, free_disk=FULL_DISK)
    assert "limits.open_files" in told
    assert "limits.tmp_size" in told
