"""Outputs that are no ordinary files: nothing of the host comes back as a result, and the agent serves the next run."""

import json
from typing import Any

import pytest

from tests.hostile.siege import CANARY, Siege

pytestmark = pytest.mark.interop

FACES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("output_link", {"target": "CANARY"}),
    ("output_link", {"target": "/proc/self/environ"}),
    ("output_link", {"target": "/etc/shadow"}),
    ("output_pipe", {}),
    ("output_socket", {}),
    ("output_device", {}),
    ("output_folder", {}),
    ("output_sparse", {"size": 1 << 40}),
    ("output_deep", {"levels": 2000}),
)


def test_no_odd_output_brings_anything_of_the_host_back(besieged: Siege) -> None:
    """Links to the owner's file, /proc and /etc, a pipe, a socket, a device, a folder, a terabyte of holes, 2,000 deep."""
    tasks = {}
    for face, arguments in FACES:
        told = {key: str(besieged.canary) if value == "CANARY" else value for key, value in arguments.items()}
        task = besieged.send(besieged.bob, face, **told)
        run = task.ended()
        result = task.raw_result() if run["status"] == "completed" else ""
        tasks[face, *map(str, told.values())] = (run["status"], result)
        assert CANARY not in result
        assert "root:" not in result
    assert {status for status, _ in tasks.values()} <= {"failed", "completed"}, tasks
    assert all(not result.strip('\0" \n') for _, result in tasks.values()), tasks
    assert besieged.send(besieged.alice, "honest").result() == {"fine": True}


def test_an_output_closed_to_everybody_stops_nothing(besieged: Siege) -> None:
    """An agent without root may not read what its own user closed; it goes on in any case."""
    task = besieged.send(besieged.bob, "output_closed")
    assert task.ended()["status"] in {"completed", "failed"}
    assert task.raw_result() in {"", json.dumps({"fine": True})}
    assert besieged.send(besieged.alice, "honest").result() == {"fine": True}
