"""A burst of empty runs: our agent, vantage6's own node, and the bare engine with as many at once as our agent.

The tasks are posted while both nodes are held still, so that the posting is not measured; then one of them is let go.
vantage6's own node knows no bound on how many runs it starts: it runs as it is.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from tests.bench.bare import LABEL, ByHand
from tests.bench.failures import BenchError
from tests.bench.figures import p95, running_total, spread
from tests.bench.researcher import Job
from tests.bench.scale import Scale
from tests.bench.stage import AGENT_NAME_LABEL, PARALLEL, Pair, Stage, pair_on
from tests.bench.watching import STARTED
from tests.lab.places import say

SECONDS_PER_RUN = 6
Burst = Mapping[str, Any]


def measure(stage: Stage, scale: Scale) -> dict[str, Any]:
    """Let the three take turns; the peer, which takes minutes, less often."""
    pair, job = pair_on(stage), Job(stage.empty_image)
    by_hand = ByHand.beside(pair.agent, stage.client, job.image)
    for organization in ("alpha", "beta"):
        pair.researcher.whole_task(organization, job)
    ways: dict[str, tuple[int, Callable[[], Burst]]] = {
        "agent": (scale.burst_rounds, lambda: _ours(stage, pair, job, scale.burst)),
        "engine": (scale.burst_rounds, lambda: _bare(stage, by_hand, scale.burst)),
        "vantage6_node": (scale.peer_burst_rounds, lambda: _peers(stage, pair, job, scale.burst)),
    }
    took: dict[str, list[Burst]] = {name: [] for name in ways}
    for number in range(scale.burst_rounds):
        for name, (rounds, run) in ways.items():
            if number < rounds:
                took[name].append(run())
                say(f"burst of {scale.burst}: {name} {took[name][-1]['seconds']:.1f} s")
    return {
        "runs": scale.burst,
        "parallel": PARALLEL,
        "ways": {name: _summary(found, scale.burst) for name, found in took.items()},
    }


def _summary(bursts: list[Burst], runs: int) -> dict[str, Any]:
    seconds = [burst["seconds"] for burst in bursts]
    return {
        "seconds": spread(seconds),
        "per_second": spread([runs / one for one in seconds]),
        "wait_p95": spread([p95(burst["waits"]) for burst in bursts]),
        "curve": bursts[-1]["curve"],
    }


def _ours(stage: Stage, pair: Pair, job: Job, count: int) -> Burst:
    return _let_go(
        stage,
        pair,
        job,
        count,
        organization="alpha",
        held=_stopped(pair.agent.pid),
        label=(AGENT_NAME_LABEL, pair.agent.name),
    )


def _peers(stage: Stage, pair: Pair, job: Job, count: int) -> Burst:
    return _let_go(
        stage, pair, job, count, organization="beta", held=_paused(pair), label=("node", pair.peer.name)
    )


def _let_go(
    stage: Stage, pair: Pair, job: Job, count: int, *, organization: str, held: Any, label: tuple[str, str]
) -> Burst:
    """Post while the node is held; measure from when it is let go."""
    with held:
        tasks = [pair.researcher.post(organization, job) for _ in range(count)]
    released = time.time()
    ends = [
        ended for _, ended in pair.researcher.await_all(tasks, within=60 + count * SECONDS_PER_RUN).values()
    ]
    seconds = time.time() - released
    return _burst(stage, label, since=released, seconds=seconds, ends=[end for end in ends if end])


def _bare(stage: Stage, by_hand: ByHand, count: int) -> Burst:
    released = time.time()
    with ThreadPoolExecutor(PARALLEL) as pool:
        ends = list(pool.map(lambda _: (by_hand.run(), time.time())[1], range(count)))
    return _burst(stage, (AGENT_NAME_LABEL, LABEL), since=released, seconds=max(ends) - released, ends=ends)


def _burst(stage: Stage, label: tuple[str, str], *, since: float, seconds: float, ends: list[float]) -> Burst:
    begun = [one.moments[STARTED] for one in stage.watch.with_label(*label) if STARTED in one.moments]
    waits = [moment - since for moment in begun if moment >= since]
    if len(waits) < len(ends):
        raise BenchError(f"the engine told of {len(waits)} starts of {len(ends)}")
    return {"seconds": seconds, "waits": waits, "curve": running_total(ends, since=since)}


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def _paused(pair: Pair) -> Iterator[None]:
    pair.peer.container.pause()
    try:
        yield
    finally:
        pair.peer.container.unpause()
