"""Two people's runs at once on one node, each leaving a secret everywhere and searching everywhere for the other's."""

import os

import pytest

from tests.hostile.siege import Siege

pytestmark = pytest.mark.interop

SECONDS = float(os.environ.get("HOSTILE_SECONDS", "12"))
"""How long both search; `make hostile` gives them a minute."""


def test_nothing_crosses_between_two_people_who_use_everything_there_is(besieged: Siege) -> None:
    """Files, /dev/shm, SysV memory and messages, abstract sockets, processes, ports, broadcast and multicast."""
    secrets = {"own": "secret-of-alice", "other": "secret-of-bob"}
    first = besieged.send(besieged.alice, "cross", **secrets, seconds=SECONDS)
    second = besieged.send(besieged.bob, "cross", own=secrets["other"], other=secrets["own"], seconds=SECONDS)
    within = SECONDS + 60
    results = [first.result(within=within), second.result(within=within)]
    together = min(result["to"] for result in results) - max(result["from"] for result in results)
    assert together > SECONDS / 2
    for result in results:
        assert (result["found"], result["heard"]) == ([], [])
        assert result["finds itself"]
        assert result["rounds"] > 1


def test_an_algorithm_reads_no_other_persons_input(besieged: Siege) -> None:
    """The program of `make hostile-peer`, which finds it on vantage6's own node 4.15.2."""
    victim = besieged.send(besieged.alice, "wait", seconds=20, secret="of alice")
    victim.reached("active")
    assert besieged.send(besieged.bob, "neighbours").result() == {"other runs' files": [], "inputs": []}
    assert victim.run["status"] == "active"
    victim.kill()
