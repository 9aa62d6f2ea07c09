"""Runs of many kinds, and an agent that dies at the places each of them comes to.

Owns what is sent, where the agent dies with it, and what must have come of it in the end. Which places there are is found
out by an undisturbed run of the same kind. Must not know how an agent dies: `tests.lab.mortal` does.
"""

import base64
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from node_agent.payload.envelope import seal
from node_agent.payload.keys import PublicKey
from node_agent.sandbox.researcher import Order, Researcher
from tests.lab.counting import ENDED_RUNS, left_in_engine, nothing_is_left, run_folders
from tests.lab.mortal_agents import MortalAgent
from tests.lab.sandbox import SandboxLab

ALL_PLACES = os.environ.get("CRASH_MATRIX") == "all"
"""Die at every place with every kind of run, as `make crash-matrix` does; otherwise only where kinds differ, and here and
there where they do not."""

OF_NO_RUN = (
    "before journal.load",
    "before server.identify",
    "after server.identify",
    "before server.open_runs",
    "after server.open_runs",
    "before engine.find_image",
)
"""Where an agent dies before, or without saying, which run it is about."""

NOT_EACH_TIME = (
    "GET /networks/node-agent-lab-N",  # by whichever run is the first of a life to need it
    "GET /_ping",
    "GET /version",
    "GET /info",
    "GET /events",
    "mkdir answers",
    "folders.used_bytes",
    "folders.report_size",
)
"""What is asked once by a thread or a process, and what is only done when the algorithm is still at work."""

LIMITS = {"concurrent_runs": 8, "cpus": 1, "memory": "64MiB", "tmp_size": "4MiB", "output_size": "256KiB"}
END_SECONDS = 90
WORK_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of run: what is sent, what is done to it, and how it must end."""

    name: str
    image: str
    ends: tuple[str, ...] = ("completed",)
    """The server's word for its end; several where the death decides which."""
    seconds: float = WORK_SECONDS
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    key: PublicKey | None = None
    """The input is sealed for it; None: it is not."""
    kill: str | None = None
    """When the researcher kills it: `at work`, or `away`, once the agent has died."""

    def order(self, lab: SandboxLab, organization: str) -> "SealedOrder":
        """Give what is sent."""
        return SealedOrder(
            image=self.image,
            method="count",
            organizations=(lab.organization_ids[organization],),
            collaboration_id=lab.collaboration_id,
            kwargs={"seconds": self.seconds, **self.kwargs},
            key=self.key,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedOrder(Order):
    """A task whose input only the node can read, where there is a key."""

    key: PublicKey | None = None

    def body(self) -> dict[str, Any]:
        """Give the task as the server takes it."""
        body = Order.body(self)
        if self.key is not None:
            for asked in body["organizations"]:
                asked["input"] = b"".join(seal([base64.b64decode(asked["input"])], self.key)).decode()
        return body


class Node:
    """One node at a server: its agent, and the researcher who sends it runs."""

    def __init__(self, lab: SandboxLab, organization: str, settings: Mapping[str, Any]) -> None:
        self._lab = lab
        self._organization = organization
        self.agent = MortalAgent(
            server_url=lab.url,
            api_key=lab.api_keys[organization],
            settings={"limits": LIMITS, **settings},
        )
        self._researcher = Researcher.at(
            lab.url, username=organization, password=lab.server.passwords[organization]
        )
        self.sent: dict[int, Kind] = {}
        self.deaths = 0

    def send(self, kind: Kind) -> int:
        """Send a task and give the number of its run."""
        task = self._researcher.send(kind.order(self._lab, self._organization))
        (run,) = self._researcher.runs(task)
        # a container's token is asked for by task, and every call must be known as one of its run
        assert run.id == task
        self.sent[task] = kind
        return task

    def undisturbed(self, kind: Kind) -> list[tuple[int, str]]:
        """Let one run of this kind live and end, and give every place it passed, in order.

        The number says whose place it is: 0 the run's own, 1 its first subtask's.
        """
        self._let_strays_grow_old()
        run = self.send(kind)
        self.agent.begin()
        if kind.kill:
            self._kill_at_work(run)
        self._wait_until_all_is_over()
        self.agent.rest()
        passed = [(of - run, place) for of, place in self.agent.places() if of is not None and of >= run]
        return [place for place in dict.fromkeys(passed) if is_chosen(place[1])]

    def die_at(self, kind: Kind, places: Sequence[tuple[int, str]]) -> None:
        """Send a run for each place, and die there with it."""
        for whose, place in places:
            run = self.send(kind)
            self.agent.begin(run=None if place in OF_NO_RUN else run + whose, place=place)
            if kind.kill == "at work":
                self._kill_at_work(run)
            self.agent.die_now(place)
            self.deaths += 1
            if kind.kill == "away":
                self._researcher.kill(run)

    def _kill_at_work(self, run: int) -> None:
        deadline = time.monotonic() + END_SECONDS
        while self._researcher.runs(run)[0].status != "active":
            assert time.monotonic() < deadline, self.agent.log_tail()
            time.sleep(0.05)
        self._researcher.kill(run)

    def live_until_all_is_over(self) -> None:
        """Live undisturbed until every run has ended and nothing is left of any."""
        self._let_strays_grow_old()
        self.agent.begin()
        self._wait_until_all_is_over()
        self.agent.rest()

    def _let_strays_grow_old(self) -> None:
        """Spare the test the ten minutes that a folder without a run in the journal is left in peace.

        Such a one is left when the agent dies between the arrival of an input and the journal's first line, and the run
        is killed before the next life: nobody speaks of it again.
        """
        for folder in run_folders(self.agent):
            os.utime(folder, (0, 0))

    def _wait_until_all_is_over(self) -> None:
        deadline = time.monotonic() + END_SECONDS
        while not (all(row["accepted"] for row in self.rows()) and nothing_is_left(self.agent)):
            assert time.monotonic() < deadline, f"{self.rows()}\n{self.agent.log_tail()}"
            time.sleep(0.1)

    def rows(self) -> list[dict[str, Any]]:
        """Read how the server sees each run of this node."""
        node_id = self._lab.node_ids[self._organization]
        return [dict(row) for row in self._lab.server.database.rows(ENDED_RUNS, node_id)]

    def assert_each_run_came_to_its_one_end(self) -> None:
        """Look into the server's books, the algorithms' own, the engine and the folders."""
        rows = self.rows()
        wrong = [row for row in rows if row["accepted"] != 1 or row["status"] not in self._ends_of(row["id"])]
        assert not wrong, f"{wrong}\n{self.agent.log_tail()}"
        starts = {str(file): file.read_text() for file in self.agent.state_dir.glob("jobs/*/starts*")}
        assert not {file: text for file, text in starts.items() if text != "x"}
        completed = [row for row in rows if row["status"] != "killed by user"]
        assert len(starts) >= len(completed)
        assert not any(left_in_engine(self.agent).values())
        assert not run_folders(self.agent)

    def _ends_of(self, run: int) -> tuple[str, ...]:
        # what nobody here sent is a subtask
        kind = self.sent.get(run)
        return ("completed",) if kind is None else kind.ends


def is_chosen(place: str) -> bool:
    """Leave out what the next place stands for, and what not every run comes to."""
    return not place.startswith("after ") and not place.endswith(NOT_EACH_TIME)


def beyond(
    places: Sequence[tuple[int, str]], usual: Sequence[tuple[int, str]], *, every: int
) -> list[tuple[int, str]]:
    """Choose the places that the usual run does not come to, and every so manieth of the others."""
    shared = [place for place in places if place in usual]
    return [place for place in places if place not in usual] + shared[:: 1 if ALL_PLACES else every]
