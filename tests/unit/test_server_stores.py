"""What counts as a store's confirmation, who gets the node's token, and how long a silent store is asked."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from node_agent.domain.secret import Secret
from node_agent.domain.verdict import Approval
from node_agent.errors import NodeAgentError, ServerUnreachable, StoreUnreachable
from node_agent.server.exchange import Call, Reply, Stream
from node_agent.server.stores import ANSWER_LIMIT, MOST_PAGES, PATIENCE_SECONDS, HttpStores
from node_agent.server.tokens import Tokens
from tests.doubles.clock import ManualClock
from tests.unit.test_server_tokens import Server as TokenServer

STORE = "https://store.example.org/api"
IMAGE = "registry.example.org/approved/average"
DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
AWAY = ServerUnreachable("GET /algorithm at https://store.example.org/api: no connection in time")
YES = Approval(given=True)


def algorithm(**changes: Any) -> dict[str, Any]:
    usual = {"id": 1, "name": "average", "image": f"{IMAGE}:1", "digest": DIGEST, "status": "approved"}
    return {**usual, **changes}


def listed(*algorithms: object, more: bool = False) -> Reply:
    links = {"next": "/api/algorithm?page=2"} if more else {}
    return answered(200, {"data": list(algorithms), "links": links})


def answered(status: int, content: object) -> Reply:
    return Reply(call="GET /algorithm", status=status, body=json.dumps(content).encode())


def refused(status: int, text: str) -> Reply:
    return answered(status, {"msg": text})


class Store:
    """Answers calls from a list, the last one for ever."""

    def __init__(self, *answers: Reply | NodeAgentError) -> None:
        self._answers = list(answers)
        self.calls: list[Call] = []
        self.opened: list[str] = []
        self.closed = 0

    def open_at(self, url: str) -> "Store":
        self.opened.append(url)
        return self

    def send(self, call: Call) -> Reply:
        self.calls.append(call)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, NodeAgentError):
            raise answer
        return answer

    @contextmanager
    def open(self, call: Call) -> Iterator[Stream]:
        raise AssertionError(call)
        yield

    def close(self) -> None:
        self.closed += 1

    @property
    def queries(self) -> list[Mapping[str, str | int] | str]:
        return [call.query for call in self.calls]


class Bench:
    def __init__(self, *answers: Reply | NodeAgentError) -> None:
        self.store = Store(*answers)
        self.clock = ManualClock()
        self.stores = HttpStores(
            Tokens(TokenServer(), Secret("key"), monotonic=lambda: 0.0),
            server_url="https://server.example.org/api",
            open_exchange=self.store.open_at,
            monotonic=self.clock.monotonic,
        )

    def ask(self, *, image: str = f"{IMAGE}:1", digest: str = DIGEST) -> Approval:
        return self.stores.approval(f"{STORE}/", image=image, digest=digest)


def test_the_store_is_asked_as_the_stores_of_vantage6_expect_it() -> None:
    bench = Bench(listed(algorithm()))
    assert bench.ask() == YES
    (call,) = bench.store.calls
    assert bench.store.opened == [STORE]
    assert (call.method, call.path, call.query) == ("GET", "algorithm", {"image": f"{IMAGE}:1"})
    assert call.headers == {"Server-Url": "https://server.example.org/api", "Client-Type": "node"}
    assert call.token is not None
    assert call.limit == ANSWER_LIMIT
    assert bench.store.closed == 1


@pytest.mark.parametrize(
    "found",
    [
        algorithm(digest=OTHER),
        algorithm(digest=None),
        algorithm(digest=DIGEST.upper()),
        algorithm(digest=f"{DIGEST}\n"),
        algorithm(digest=[DIGEST]),
        algorithm(image=f"{IMAGE}r:1"),
        algorithm(image="evil.example/approved/average"),
        algorithm(image=None),
        algorithm(image=7),
        algorithm(image="not an image"),
        algorithm(status="under review"),
        algorithm(status="awaiting reviewer assignment"),
        algorithm(status="replaced"),
        algorithm(status=True),
        algorithm(invalidated_at="2026-01-01T00:00:00"),
        "registry.example.org/approved/average",
        None,
        {},
        [],
    ],
)
def test_an_answer_that_shows_anything_else_confirms_nothing(found: object) -> None:
    given = Bench(listed(found)).ask()
    assert not given.given
    assert DIGEST in given.reason


def test_one_good_entry_among_others_is_enough() -> None:
    assert Bench(listed(None, algorithm(digest=OTHER), algorithm())).ask() == YES


@pytest.mark.parametrize(
    "image", [f"{IMAGE}@{DIGEST}", f"{IMAGE}:other", "Registry.example.org/approved/average"]
)
def test_the_content_counts_and_not_the_tag_it_was_asked_by(image: str) -> None:
    assert Bench(listed(algorithm())).ask(image=image) == YES


def test_a_store_whose_tag_has_moved_on_is_looked_through() -> None:
    moved = refused(400, "This algorithm version is not approved by the store.")
    bench = Bench(moved, listed(algorithm(digest=OTHER), more=True), listed(algorithm()))
    assert bench.ask() == YES
    assert bench.store.queries[1:] == [{"page": 1, "per_page": 100}, {"page": 2, "per_page": 100}]


def test_a_store_without_the_image_says_so_in_its_own_words() -> None:
    bench = Bench(refused(400, "Image digest could not be determined"), listed())
    given = bench.ask()
    assert not given.given
    assert "Image digest could not be determined" in given.reason


def test_a_list_without_end_is_left() -> None:
    bench = Bench(listed(algorithm(digest=OTHER), more=True))
    assert not bench.ask().given
    assert len(bench.store.calls) == 1 + MOST_PAGES


def test_a_store_that_does_not_know_this_server_gives_no_approval() -> None:
    bench = Bench(refused(403, "Server is not whitelisted"))
    given = bench.ask()
    assert (given.given, len(bench.store.calls)) == (False, 1)
    assert "Server is not whitelisted" in given.reason


def test_a_token_the_store_does_not_take_is_renewed_once() -> None:
    bench = Bench(refused(401, "Token is not valid"), listed(algorithm()))
    assert bench.ask() == YES
    first, second = bench.store.calls
    assert first.token != second.token
    assert not Bench(refused(401, "Token is not valid")).ask().given


@pytest.mark.parametrize(
    "answer",
    [
        AWAY,
        refused(500, "An unexpected error"),
        Reply(call="GET /algorithm", status=404, body=b"<html>"),
        Reply(call="GET /algorithm", status=302, body=b""),
        Reply(call="GET /algorithm", status=200, body=b"not json"),
        answered(200, []),
        answered(200, {"data": {"image": IMAGE}}),
    ],
)
def test_a_store_without_a_usable_answer_is_asked_again_and_then_refused(
    answer: Reply | NodeAgentError,
) -> None:
    bench = Bench(answer)
    for _ in range(3):
        with pytest.raises(StoreUnreachable, match=r"store\.example\.org"):
            bench.ask()
    bench.clock.advance(PATIENCE_SECONDS)
    given = bench.ask()
    assert not given.given
    assert "kept asking for 10 seconds" in given.reason
    assert bench.store.closed == 4


@pytest.mark.parametrize("stumbles", [AWAY, refused(500, "An unexpected error"), refused(502, "bad gateway")])
def test_a_store_that_stumbles_over_its_registry_is_looked_through(
    stumbles: Reply | NodeAgentError,
) -> None:
    assert Bench(stumbles, listed(algorithm())).ask() == YES
    given = Bench(stumbles, listed(algorithm(digest=OTHER))).ask()
    assert not given.given


def test_patience_begins_anew_after_an_answer_and_for_another_run_much_later() -> None:
    bench = Bench(AWAY, AWAY, listed(algorithm()), AWAY)
    with pytest.raises(StoreUnreachable):
        bench.ask()
    assert bench.ask() == YES
    bench.clock.advance(PATIENCE_SECONDS)
    with pytest.raises(StoreUnreachable):
        bench.ask()
    bench.clock.advance(1000)
    with pytest.raises(StoreUnreachable):
        bench.ask()


def test_a_coordinating_server_that_is_away_is_not_the_stores_fault() -> None:
    class Away(TokenServer):
        def send(self, call: Call) -> Reply:
            raise ServerUnreachable(f"{call}: no connection")

    bench = Bench(listed(algorithm()))
    stores = HttpStores(
        Tokens(Away(), Secret("key")), server_url="https://s/api", open_exchange=bench.store.open_at
    )
    with pytest.raises(ServerUnreachable):
        stores.approval(STORE, image=IMAGE, digest=DIGEST)
    assert bench.store.calls == []
