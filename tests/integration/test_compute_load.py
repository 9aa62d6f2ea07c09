"""Many consumers at once: no job is lost, none runs twice, no grant is used more often than it may be, memory stays."""

import contextlib
import json
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest

from node_agent.compute.ledger import FILE_NAME, Grant, Ledger
from node_agent.domain.run import FIRST_JOB_RUN
from tests.interop.stage import eventually
from tests.lab.agents import LABEL
from tests.lab.consumer import Consumer, Job, Refused, raw_code
from tests.lab.job_site import JobSite, Offer, did_of, job_site
from tests.parts import engine_client

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

ADDRESSES = 5
STARTS_EACH = 4
LISTINGS_EACH = 20
LOOKS_EACH = 16
"""Signed requests: 40 of each address, 200 in all, every one in a thread of its own."""
USES = 4
GREEDY_STARTS = 12
PATIENCE = 120.0
MOST_GROWTH_KIB = 48 * 1024
PATIENTS, SCARCE = did_of("patients"), did_of("scarce")
TINY = "echo tiny > /data/outputs/x\n"


@dataclass
class Witness:
    """Follows the engine and notes each container of a run that starts."""

    agent: str
    client: docker.DockerClient
    started: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        wanted = {"type": "container", "event": "start", "label": f"{LABEL}={self.agent}"}
        events = self.client.events(filters=wanted, decode=True)
        thread = threading.Thread(target=self._follow, args=(events,))
        thread.start()
        try:
            yield
        finally:
            events.close()
            thread.join(PATIENCE)

    def _follow(self, events: Any) -> None:
        for event in events:
            run = event["Actor"]["Attributes"].get("node-agent.run")
            if run is not None:
                self.started.append(run)


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """The site and everybody who asks it."""

    site: JobSite
    consumers: tuple[Consumer, ...]
    witness: Witness

    def tiny(self, who: Consumer, *, data_set: str = PATIENTS, order: str) -> Job:
        algorithm = raw_code(self.site.shelf.python, TINY, entrypoint="sh $ALGO")
        return who.start([data_set], algorithm, order=order)

    def memory_kib(self) -> int:
        """Read how much memory the agent's process has."""
        said = Path(f"/proc/{self.site.agent.pid}/status").read_text()
        return int(next(line.split()[1] for line in said.splitlines() if line.startswith("VmRSS")))


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    folder = tmp_path_factory.mktemp("data")
    offers = []
    for label in ("patients", "scarce"):
        file = folder / f"{label}.csv"
        file.write_text("x\n1\n")
        file.chmod(0o644)
        offers.append(Offer(label=label, path=file, extras={"raw_algorithms": True}))
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(engine_client())
        site = stack.enter_context(job_site(client, offers, api={"access": "grants"}))
        consumers = tuple(site.consumer(seed) for seed in range(1, ADDRESSES + 1))
        with contextlib.closing(Ledger(site.agent.state_dir)) as ledger:
            for consumer in consumers:
                ledger.add_grant(_for_ever(consumer))
        witness = Witness(site.agent.name, client)
        stack.enter_context(witness.watching())
        yield Crowd(site=site, consumers=consumers, witness=witness)


def _for_ever(consumer: Consumer) -> Grant:
    return Grant(
        id=f"grant-{consumer.address}",
        consumer=consumer.address.lower(),
        data_set=PATIENTS,
        uses_left=None,
        expires_at=None,
        created_at=1.0,
    )


def in_spite_of_others(act: Callable[[], Any]) -> Any:
    """Do what needs a nonce until it is the highest one: requests of the same address overtake each other."""
    while True:
        try:
            return act()
        except Refused as refused:
            if not refused.is_about_the_nonce:
                raise


@dataclass(frozen=True)
class Act:
    """One signed request of one of them."""

    who: Consumer
    ask: Callable[[], Any]
    is_start: bool = False

    def done(self, at_once: threading.Barrier) -> Any:
        """Ask at the same moment as all others."""
        at_once.wait(PATIENCE)
        assert self.who.last_nonce() > 0
        return in_spite_of_others(self.ask)


def acts_of(crowd: Crowd, who: Consumer, first: Job) -> list[Act]:
    starts = [Act(who, lambda: crowd.tiny(who, order=f"grant-{who.address}"), is_start=True)] * STARTS_EACH
    return starts + [Act(who, who.jobs)] * LISTINGS_EACH + [Act(who, lambda: who.look(first))] * LOOKS_EACH


def assert_every_job_was_started_once(crowd: Crowd) -> None:
    """Hold the engine's events against the books."""
    file = crowd.site.agent.state_dir / FILE_NAME
    with contextlib.closing(sqlite3.connect(file, timeout=PATIENCE)) as books:
        numbers = [number for (number,) in books.execute("SELECT number FROM job")]
    wanted = sorted(str(FIRST_JOB_RUN + number) for number in numbers)
    started = crowd.witness.started
    eventually(lambda: len(started) >= len(wanted), within=PATIENCE, what="every start seen")
    assert sorted(started) == wanted


def test_of_many_requests_at_once_no_job_is_lost_or_doubled_and_memory_stays(crowd: Crowd) -> None:
    first = {who: crowd.tiny(who, order=f"grant-{who.address}") for who in crowd.consumers}
    for who, job in first.items():
        assert who.ended(job)["status"] == 70
    before = crowd.memory_kib()
    acts = [act for who in crowd.consumers for act in acts_of(crowd, who, first[who])]
    random.Random(6).shuffle(acts)
    at_once = threading.Barrier(len(acts))
    with ThreadPoolExecutor(len(acts)) as pool:
        answers = list(pool.map(lambda act: act.done(at_once), acts))
    assert len(answers) == ADDRESSES * (STARTS_EACH + LISTINGS_EACH + LOOKS_EACH) == 200
    for who in crowd.consumers:
        started = [
            answer for act, answer in zip(acts, answers, strict=True) if act.is_start and act.who is who
        ]
        assert {who.ended(job, within=PATIENCE)["status"] for job in started} == {70}
        assert {job["jobId"] for job in who.jobs()} == {job["jobId"] for job in (*started, first[who])}
        assert len(who.jobs()) == STARTS_EACH + 1
        assert who.outputs(who.look(started[-1]))["x"] == b"tiny\n"
        assert not who.memory.faults
    assert_every_job_was_started_once(crowd)
    growth = crowd.memory_kib() - before
    print(f"\nmemory: {before} KiB, and {growth} KiB more after the crowd")
    assert growth < MOST_GROWTH_KIB


def test_a_grant_is_used_exactly_as_often_as_it_may_be_when_everybody_comes_at_once(crowd: Crowd) -> None:
    who = crowd.site.consumer(0x77)
    words = ("--consumer", who.address, "--dataset", "scarce", "--uses", str(USES), "--json")
    created = crowd.site.agent.command("grant", "create", *words)
    assert created.returncode == 0, created.stderr
    grant = json.loads(created.stdout)["id"]
    at_once = threading.Barrier(GREEDY_STARTS)

    def greedy(_: int) -> Job | Refused:
        at_once.wait(PATIENCE)
        try:
            return in_spite_of_others(lambda: crowd.tiny(who, data_set=SCARCE, order=grant))
        except Refused as refused:
            return refused

    with ThreadPoolExecutor(GREEDY_STARTS) as pool:
        answers = list(pool.map(greedy, range(GREEDY_STARTS)))
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert [answer.body for answer in refused] == [{"error": {"dataset.serviceId": "order_invalid"}}] * (
        GREEDY_STARTS - USES
    )
    jobs = [answer for answer in answers if not isinstance(answer, Refused)]
    assert {who.ended(job)["status"] for job in jobs} == {70}
    assert len(who.jobs()) == USES
    (row,) = json.loads(crowd.site.agent.command("grant", "list", "--consumer", who.address, "--json").stdout)
    assert row["uses_left"] == 0
    assert_every_job_was_started_once(crowd)
