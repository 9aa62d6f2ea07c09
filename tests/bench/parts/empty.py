"""An empty run, five ways: our agent, vantage6's own node, the bare engine through its API, `docker run`.

The bare engine makes the container's network, as it does for whoever asks, or has it join one that is there, as ours do.

Owns the rounds and where the time of ours went. All on one machine, one server, one image, in turns.
"""

from collections.abc import Callable, Mapping
from typing import Any

from node_agent.domain.run import State
from tests.bench.bare import ByHand, docker_run
from tests.bench.figures import Interval, medians, own_part, spread, steps_between
from tests.bench.own import calls_between, moments_of
from tests.bench.researcher import Done, Job
from tests.bench.scale import Scale
from tests.bench.stage import AGENT_NAME_LABEL, RUN_LABEL, Pair, Stage, in_turns, pair_on
from tests.bench.watching import CREATED, ENDED, STARTED

# What ends at each moment of a run, in the order of its life.
PHASES = (
    (State.RECEIVED.name, "the server takes the task, the agent lists it"),
    (State.ADMITTED.name, "claim at the server"),
    (State.PULLED.name, "policy, digest from the registry"),
    (State.CREATED.name, "token, folders, container created"),
    (STARTED, "the engine starts the container"),
    (ENDED, "the algorithm runs"),
    (State.CAPTURED.name, "log and output are taken over"),
    (State.FINISHED.name, "checks of the output"),
    (State.REPORTED.name, "report"),
    ("seen", "the researcher sees it"),
)


def measure(stage: Stage, scale: Scale) -> dict[str, Any]:
    """Let the four ways take turns, and take our own runs apart."""
    pair, job = pair_on(stage), Job(stage.empty_image)
    own_network = ByHand.beside(pair.agent, stage.client, job.image)
    with own_network.joining() as joining:
        return _measured(stage, scale, pair, job, own_network, joining)


def _measured(  # noqa: PLR0917 - what was set up
    stage: Stage, scale: Scale, pair: Pair, job: Job, own_network: ByHand, joining: ByHand
) -> dict[str, Any]:
    ways: dict[str, Callable[[], Done | float]] = {
        "agent": lambda: pair.researcher.whole_task("alpha", job),
        "vantage6_node": lambda: pair.researcher.whole_task("beta", job),
        "engine": own_network.run,
        "engine_joining": joining.run,
        "docker_run": lambda: docker_run(job.image),
    }
    in_turns(ways, rounds=scale.warm_up, what="empty run, warm-up")
    took = in_turns(ways, rounds=scale.rounds, what="empty run")
    done = [one for one in took["agent"] if isinstance(one, Done)]
    by_hands = [_seconds(one) for one in took["engine_joining"]]
    ours = [_taken_apart(stage, pair, one) for one in done]
    calls = [_calls(pair, one) for one in done]
    return {
        "seconds": {name: spread([_seconds(one) for one in found]) for name, found in took.items()},
        "phases": medians([one["phases"] for one in ours]),
        "own": spread(
            [
                own_part(one["whole"], [spent for _, spent in made], one["container"], hand)
                for one, made, hand in zip(ours, calls, by_hands, strict=True)
            ]
        ),
        "server_calls": spread([float(len(made)) for made in calls]),
        "server_calls_made": [name for name, _ in calls[-1]],
    }


def _seconds(one: Done | float) -> float:
    return one if isinstance(one, float) else one.seconds


def _taken_apart(stage: Stage, pair: Pair, done: Done) -> Mapping[str, Any]:
    moments = moments_of(pair.agent, done.run_id, until=State.REPORTED)
    labels = {AGENT_NAME_LABEL: pair.agent.name, RUN_LABEL: str(done.run_id)}
    engine = stage.watch.one_with(labels, CREATED, STARTED, ENDED).moments
    known = {**moments, **engine, "seen": done.seen}
    path = [("", done.posted), *((title, known[name]) for name, title in PHASES)]
    reported: Interval = (done.posted, moments[State.REPORTED.name])
    return {
        "phases": steps_between(path),
        "whole": reported,
        "container": (engine[CREATED], engine[ENDED]),
    }


def _calls(pair: Pair, done: Done) -> list[tuple[str, Interval]]:
    """Return the calls of a run, the posting of its task among them."""
    reported = moments_of(pair.agent, done.run_id, until=State.REPORTED)[State.REPORTED.name]
    posting = ("POST /task", (done.posted, done.answered))
    return [posting, *calls_between(pair.agent, done.posted, reported)]
