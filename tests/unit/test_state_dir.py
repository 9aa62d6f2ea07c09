"""The state directory is the agent's own, and no link in it is followed."""

import os
from pathlib import Path

import pytest

from node_agent.errors import ConfigError
from node_agent.store.lock import AgentLock, running_pid
from node_agent.store.presence import PresenceFile
from node_agent.store.statedir import claim_state_dir


def test_a_new_directory_is_made_and_one_of_ours_is_closed_to_others(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    claim_state_dir(place)
    place.chmod(0o777)
    (place / "runs").mkdir()
    claim_state_dir(place)
    assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("entry", ["", "runs"])
def test_a_directory_or_an_entry_of_another_user_is_refused(tmp_path: Path, entry: str) -> None:
    (tmp_path / "state" / "runs").mkdir(parents=True)
    os.chown(tmp_path / "state" / entry, 64300, 64300)
    mode = (tmp_path / "state").stat().st_mode
    with pytest.raises(ConfigError, match="belongs to user 64300"):
        claim_state_dir(tmp_path / "state")
    if not entry:
        assert (tmp_path / "state").stat().st_mode == mode


@pytest.mark.parametrize("name", ["lock", "presence.json", "journal.sqlite", "runs", "jobs", "kept", "proxy"])
def test_a_link_in_the_directory_is_refused_and_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        claim_state_dir(tmp_path / "state")
    assert not (tmp_path / "elsewhere").exists()


def test_lock_and_sign_of_life_are_never_written_through_a_link(tmp_path: Path) -> None:
    for name in ("lock", "presence.json"):
        (tmp_path / name).symlink_to(tmp_path / f"canary-{name}")
    with pytest.raises(ConfigError):
        AgentLock(f"test-{os.getpid()}", tmp_path)
    with pytest.raises(OSError, match="symbolic links"):
        PresenceFile(tmp_path).take_room()
    assert running_pid(tmp_path) is None
    assert not list(tmp_path.glob("canary*"))


def test_a_pipe_in_place_of_the_lock_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    assert running_pid(tmp_path) is None
    with pytest.raises(ConfigError, match="no file of the agent's own user"):
        AgentLock(f"test-{os.getpid()}", tmp_path)
