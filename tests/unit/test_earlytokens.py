"""Container tokens that are asked for beside the pull."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from queue import SimpleQueue

import pytest

from node_agent import steps
from node_agent.domain.container import PinnedImage
from node_agent.domain.run import Outcome, RunId, State
from node_agent.domain.secret import Secret
from node_agent.domain.task import TaskId
from node_agent.earlytokens import EarlyTokens
from node_agent.errors import RunFailed, ServerUnreachable
from tests.doubles.core import EngineBook, ServerBook, make_run
from tests.unit.test_steps import RUN, Bench

SECONDS = 30.0
OTHER = RunId(2)


class Server:
    """Gives tokens when it may, and notes in which thread it was asked."""

    def __init__(self) -> None:
        self.asked_in: SimpleQueue[str] = SimpleQueue()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.failures: list[Exception] = []
        self._numbers = count(1)

    def token(self) -> Secret:
        self.asked_in.put(threading.current_thread().name)
        assert self.may_answer.wait(SECONDS)
        if self.failures:
            raise self.failures.pop()
        return Secret(f"token-{next(self._numbers)}")

    def was_asked_in(self) -> str:
        return self.asked_in.get(timeout=SECONDS)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.may_answer.set()  # nobody is left waiting in it


@pytest.fixture
def tokens() -> EarlyTokens:
    made = EarlyTokens()
    made.start(threads=1)
    return made


def test_a_token_is_asked_for_in_another_thread_and_once(tokens: EarlyTokens, server: Server) -> None:
    tokens.ask(RUN, server.token)
    assert server.was_asked_in() == "token-0"
    tokens.ask(RUN, server.token)
    assert tokens.take(RUN, server.token).reveal() == "token-1"
    assert server.asked_in.empty()


def test_who_takes_a_token_that_is_on_its_way_waits_for_it(tokens: EarlyTokens, server: Server) -> None:
    server.may_answer.clear()
    tokens.ask(RUN, server.token)
    server.was_asked_in()
    threading.Timer(0.01, server.may_answer.set).start()
    assert tokens.take(RUN, server.token).reveal() == "token-1"
    assert server.asked_in.empty()


def test_nobody_waits_for_a_turn_that_has_not_come(tokens: EarlyTokens, server: Server) -> None:
    slow = Server()
    slow.may_answer.clear()
    tokens.ask(OTHER, slow.token)
    slow.was_asked_in()
    tokens.ask(RUN, server.token)
    assert tokens.take(RUN, server.token).reveal() == "token-1"
    assert server.was_asked_in() == threading.current_thread().name
    slow.may_answer.set()
    tokens.take(OTHER, slow.token)
    tokens.ask(RUN, server.token)
    assert server.was_asked_in() == "token-0"
    assert tokens.take(RUN, server.token).reveal() == "token-2"


def test_a_token_is_taken_once(tokens: EarlyTokens, server: Server) -> None:
    tokens.ask(RUN, server.token)
    server.was_asked_in()
    first = tokens.take(RUN, server.token)
    assert tokens.take(RUN, server.token) != first


def test_a_token_that_could_not_be_had_early_is_asked_for_when_it_is_needed(
    tokens: EarlyTokens, server: Server
) -> None:
    server.failures.append(ServerUnreachable("away"))
    tokens.ask(RUN, server.token)
    server.was_asked_in()
    assert tokens.take(RUN, server.token).reveal() == "token-1"


def test_a_token_that_is_refused_also_when_it_is_needed_ends_the_run(
    tokens: EarlyTokens, server: Server
) -> None:
    server.failures += [RunFailed("the task is over"), RunFailed("too early")]
    tokens.ask(RUN, server.token)
    server.was_asked_in()
    with pytest.raises(RunFailed, match="the task is over"):
        tokens.take(RUN, server.token)


def test_a_token_that_nobody_will_take_is_forgotten(tokens: EarlyTokens, server: Server) -> None:
    tokens.ask(RUN, server.token)
    server.was_asked_in()
    tokens.forget(RUN)
    tokens.forget(RUN)
    tokens.take(RUN, server.token)
    assert server.was_asked_in() == threading.current_thread().name


def test_a_mistake_is_raised_where_the_token_is_taken_and_ends_no_thread(
    tokens: EarlyTokens, server: Server
) -> None:
    server.failures.append(ZeroDivisionError())
    tokens.ask(RUN, server.token)
    server.was_asked_in()
    with pytest.raises(ZeroDivisionError):
        tokens.take(RUN, server.token)
    tokens.ask(OTHER, server.token)
    assert server.was_asked_in() == "token-0"


def test_without_threads_everybody_asks_himself(server: Server) -> None:
    tokens = EarlyTokens()
    tokens.ask(RUN, server.token)
    assert server.asked_in.empty()
    assert tokens.take(RUN, server.token).reveal() == "token-1"


# --- in the steps ---------------------------------------------------------------------------------------------


@pytest.fixture
def bench(quick_dir: Path) -> Bench:
    made = Bench(quick_dir)
    made.ports.tokens.start(threads=1)
    return made


class Hasty(ServerBook):
    """A server that notes when it was asked for a token."""

    def __init__(self) -> None:
        super().__init__()
        self.was_asked = threading.Event()

    def container_token(self, task_id: TaskId, image: str) -> Secret:
        self.was_asked.set()
        return super().container_token(task_id, image)


class Slow(EngineBook):
    """An engine that has no image before something has happened."""

    def __init__(self, before: threading.Event) -> None:
        super().__init__()
        self._before = before

    def find_image(self, reference: str) -> PinnedImage | None:
        assert self._before.wait(SECONDS)
        return super().find_image(reference)


def test_the_token_is_asked_for_while_the_image_is_pulled(bench: Bench) -> None:
    server = Hasty()
    bench.ports = replace(bench.ports, server=server, runtime=Slow(before=server.was_asked))
    run = bench.go("create", bench.go("pull", make_run(1, state=State.ADMITTED)))
    assert (server.tokens_given, run.token_hash) == (1, steps.hash_token("container-token-1"))


def test_the_token_of_a_run_that_is_stopped_is_forgotten(bench: Bench) -> None:
    run = bench.go("pull", make_run(1, state=State.ADMITTED))
    bench.go("stop", replace(run, ending=Outcome.KILLED))
    fresh = Secret("fresh")
    assert bench.ports.tokens.take(RUN, lambda: fresh) is fresh
