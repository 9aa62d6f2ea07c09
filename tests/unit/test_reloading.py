"""A configuration that is read again: what counts at once, what waits for a restart, and what a fault does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from node_agent.config import Reread, Settings, load, reread
from node_agent.config.reloading import HALF_RELOADED, RELOADED, is_reloaded
from node_agent.config.shape import setting_paths
from node_agent.domain.ports import LiveLogs, Renewal
from node_agent.domain.turns import Bounds
from node_agent.errors import ConfigError
from node_agent.reloading import NewSettings, read_again

DOCUMENT = Path(__file__).parents[2] / "docs" / "service.md"


class Owner:
    """The owner of a configuration file, and the settings with which the agent began."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "alpha.yaml"
        self.key = folder / "alpha.key"
        self.key.touch(0o600)
        self.key.write_text("00000000-0000-4000-8000-000000000001")
        self.write()
        self.running = load(self.file)

    def write(self, **changes: Any) -> None:
        usual = {
            "name": "alpha",
            "server": {"url": "https://server.example.org/api", "api_key_file": str(self.key)},
            "state_dir": "/var/lib/node-agent/alpha",
            "policy": {"algorithms": ["registry.example.org/*"]},
        }
        self.file.write_text(yaml.safe_dump(usual | changes))

    def reread(self, **changes: Any) -> Reread:
        self.write(**changes)
        return reread(self.running)


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path)


# --- what counts ----------------------------------------------------------------------------------------------


def test_a_file_that_did_not_change_changes_nothing(owner: Owner) -> None:
    found = owner.reread()
    assert (found.taken, found.left) == ((), ())
    assert found.settings == owner.running


def test_policy_limits_sharing_and_logging_count_at_once(owner: Owner) -> None:
    found = owner.reread(
        policy={"algorithms": ["x/y"], "gpu": ["x/y"]},
        limits={"memory": "2GiB"},
        share={"columns": False},
        logging={"level": "debug"},
    )
    assert found.taken == (
        *("policy.algorithms", "policy.gpu", "limits.memory"),
        *("share.columns", "logging.level"),
    )
    assert found.left == ()
    settings = found.settings
    assert (settings.policy.algorithms, settings.extras.gpu) == (("x/y",), ("x/y",))
    assert (settings.limits.memory, settings.share.columns) == (2 * 2**30, False)
    assert str(settings.logging.level) == "debug"


def test_everything_else_is_named_and_stays_as_it_was(owner: Owner) -> None:
    found = owner.reread(
        server={"url": "https://other.example.org/api", "api_key_file": str(owner.key)},
        algorithm_env={"A": "1"},
        images={"pull": "never"},
        limits={"pids": 64},
    )
    assert found.left == ("server.url", "images.pull", "algorithm_env")
    assert found.taken == ("limits.pids",)
    assert found.settings.server == owner.running.server
    assert found.settings.images == owner.running.images
    assert found.settings.extras == owner.running.extras
    assert found.settings.limits.pids == 64


def test_a_key_whose_file_was_replaced_is_named_and_not_shown(owner: Owner) -> None:
    owner.key.write_text("00000000-0000-4000-8000-000000000002")
    found = owner.reread()
    assert found.left == ("server.api_key_file",)
    assert "000000000002" not in repr(found)
    assert found.settings.server == owner.running.server


def test_what_waits_for_a_restart_is_named_again_at_the_next_reload(owner: Owner) -> None:
    first = owner.reread(docker_host="tcp://engine.example.org:2376", limits={"pids": 64})
    second = reread(first.settings)
    assert (second.taken, second.left) == ((), ("docker_host",))


def test_the_largest_output_counts_for_runs_and_is_named_because_of_the_proxy(owner: Owner) -> None:
    found = owner.reread(limits={"output_size": "2GiB"})
    assert (found.taken, found.left) == (("limits.output_size",), ("limits.output_size",))


# --- what the log says ----------------------------------------------------------------------------------------


def nothing() -> None:
    return


def prepared(found: Reread) -> NewSettings:
    return NewSettings(found=found, bounds=Bounds(slots=1), live_logs=None, swap=nothing)


def said(owner: Owner, prepare: Callable[[Reread], Renewal]) -> tuple[Renewal | None, list[Any]]:
    with capture_logs() as lines:
        return read_again(owner.running, prepare), list(lines)


def test_a_faulty_file_keeps_the_old_settings_and_every_fault_is_said(owner: Owner) -> None:
    owner.write(limits={"memory": "much"}, polcy={})
    renewal, lines = said(owner, prepared)
    assert renewal is None
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("reload_refused", "error")
    assert {part for fault in line["faults"] for part in ("limits.memory", "polcy") if part in fault} == {
        "limits.memory",
        "polcy",
    }
    assert "works on" in line["hint"]


def test_a_file_that_is_gone_keeps_the_old_settings(owner: Owner) -> None:
    owner.file.unlink()
    renewal, (line,) = said(owner, prepared)
    assert renewal is None
    assert "cannot be read" in line["reason"]


def test_a_mistake_of_ours_keeps_the_old_settings_too(owner: Owner) -> None:
    def stumble(_found: Reread) -> Renewal:
        raise ZeroDivisionError

    renewal, (line,) = said(owner, stumble)
    assert renewal is None
    assert line["event"] == "reload_bug"


def test_nothing_is_swapped_before_the_control_loop_says_so(owner: Owner) -> None:
    swaps: list[Settings] = []

    def prepare(found: Reread) -> NewSettings:
        live_logs: LiveLogs | None = None
        return NewSettings(
            found=found,
            bounds=Bounds(slots=9),
            live_logs=live_logs,
            swap=lambda: swaps.append(found.settings),
        )

    owner.write(limits={"concurrent_runs": 9})
    renewal, _ = said(owner, prepare)
    assert renewal is not None
    assert (renewal.bounds.slots, swaps) == (9, [])


def test_an_agent_without_a_file_says_that_it_has_none(owner: Owner) -> None:
    bare = Settings(name="alpha", server=owner.running.server, state_dir=owner.running.state_dir)
    with pytest.raises(ConfigError, match="not started from a file"):
        reread(bare)


# --- what is written for people -------------------------------------------------------------------------------


def documented() -> dict[str, str]:
    """Read the table of docs/service.md: the settings of each row, and when they count."""
    section = DOCUMENT.read_text(encoding="utf-8").partition("### Reload")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|", section, flags=re.MULTILINE)
    return {path: when for paths, when in rows for path in re.findall(r"`([^`]+)`", paths)}


def covers(entry: str, path: str) -> bool:
    return path == entry or path.startswith((f"{entry}.", f"{entry}[]"))


@pytest.mark.parametrize("path", setting_paths())
def test_the_table_says_of_every_setting_when_it_counts(path: str) -> None:
    table = documented()
    entry = max((entry for entry in table if covers(entry, path)), key=len, default=None)
    assert entry is not None, f"no row of the table covers {path}"
    at_once = "half" if path in HALF_RELOADED else "at once" if is_reloaded(path) else "restart"
    assert at_once in table[entry]


def test_the_table_names_nothing_that_is_no_setting() -> None:
    assert [entry for entry in documented() if not any(covers(entry, path) for path in setting_paths())] == []


def test_every_section_that_counts_at_once_is_one_of_the_file() -> None:
    assert set(RELOADED) <= {path.partition(".")[0] for path in setting_paths()}
