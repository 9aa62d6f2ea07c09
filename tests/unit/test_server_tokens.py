"""Credentials are renewed in time, once, and by the cheapest way that still works."""

import base64
import json
import threading
from collections.abc import Callable

import pytest

from node_agent.domain.secret import Secret
from node_agent.errors import AccessDenied, ServerUnreachable
from node_agent.server.exchange import Call, Reply
from node_agent.server.tokens import FIRST_REFUSAL_SECONDS, LAST_REFUSAL_SECONDS, Tokens

HOURS = 3600.0


class Server:
    """Gives tokens and counts what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.given = 0
        self.lifetime: float | None = 6 * HOURS
        self.answers: dict[str, Callable[[], Reply]] = {}
        self.clock_offset = 0.0

    def send(self, call: Call) -> Reply:
        self.asked.append(call.path)
        return self.answers.get(call.path, self.grant)()

    def close(self) -> None:
        pass

    def grant(self) -> Reply:
        self.given += 1
        issued = 1_700_000_000 + self.clock_offset
        claims = {"sub": 4, "iat": issued}
        if self.lifetime is not None:
            claims["exp"] = issued + self.lifetime
        tokens = {"access_token": jwt(claims | {"n": self.given}), "refresh_token": f"r.{self.given}.x"}
        return answer(200, tokens)


def answer(status: int, content: object) -> Reply:
    return Reply(call="POST /token", status=status, body=json.dumps(content).encode())


def jwt(claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{body}.c2ln"


def unreachable() -> Reply:
    raise ServerUnreachable("away")


class Desk:
    """Tokens with a clock to turn."""

    def __init__(self) -> None:
        self.server = Server()
        self.now = 100.0
        self.tokens = Tokens(self.server, Secret("the-key"), monotonic=lambda: self.now)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_one_login_serves_many_calls(desk: Desk) -> None:
    first = desk.tokens.access_token()
    desk.now += 5 * HOURS
    assert desk.tokens.access_token() == first
    assert desk.tokens.node_id() == 4
    assert desk.server.asked == ["token/node"]


def test_a_token_is_refreshed_ten_minutes_before_its_end(desk: Desk) -> None:
    first = desk.tokens.access_token()
    desk.now += 6 * HOURS - 599
    assert desk.tokens.access_token() != first
    assert desk.server.asked == ["token/node", "token/refresh"]


def test_a_wrong_clock_does_not_matter(desk: Desk) -> None:
    desk.server.clock_offset = -1_000_000
    first = desk.tokens.access_token()
    desk.now += HOURS
    assert desk.tokens.access_token() == first


def test_a_short_lived_token_is_not_renewed_at_every_call(desk: Desk) -> None:
    desk.server.lifetime = 60
    first = desk.tokens.access_token()
    desk.now += 20
    assert desk.tokens.access_token() == first
    desk.now += 20
    assert desk.tokens.access_token() != first


def test_a_token_without_end_is_kept(desk: Desk) -> None:
    desk.server.lifetime = None
    first = desk.tokens.access_token()
    desk.now += 1e9
    assert desk.tokens.access_token() == first


def test_a_dead_refresh_token_leads_back_to_the_api_key(desk: Desk) -> None:
    first = desk.tokens.access_token()
    desk.server.answers["token/refresh"] = lambda: answer(401, {"msg": "Token has expired"})
    desk.now += 6 * HOURS
    assert desk.tokens.access_token() != first
    assert desk.server.asked == ["token/node", "token/refresh", "token/node"]


def test_a_token_that_is_still_good_is_used_while_the_server_is_away(desk: Desk) -> None:
    first = desk.tokens.access_token()
    desk.server.answers["token/refresh"] = unreachable
    desk.now += 6 * HOURS - 300
    assert desk.tokens.access_token() == first
    desk.now += 301
    with pytest.raises(ServerUnreachable):
        desk.tokens.access_token()


def test_a_gateway_that_answers_a_refresh_is_not_taken_for_the_server(desk: Desk) -> None:
    desk.tokens.access_token()
    desk.server.answers["token/refresh"] = lambda: Reply(call="x", status=403, body=b"<html>no</html>")
    desk.now += 6 * HOURS
    with pytest.raises(ServerUnreachable):
        desk.tokens.access_token()
    assert desk.server.asked == ["token/node", "token/refresh"]


def test_a_refused_token_is_renewed_once_for_all_who_ask(desk: Desk) -> None:
    refused = desk.tokens.access_token()
    renewed = [desk.tokens.renew(refused) for _ in range(5)]
    assert len(set(renewed)) == 1
    assert desk.server.asked == ["token/node", "token/refresh"]


def test_many_threads_renew_once(desk: Desk) -> None:
    refused = desk.tokens.access_token()
    start = threading.Barrier(8)
    got: list[Secret] = []

    def ask() -> None:
        start.wait()
        got.append(desk.tokens.renew(refused))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len(set(got)) == 1
    assert desk.server.asked == ["token/node", "token/refresh"]


def test_a_forgotten_token_is_not_refreshed(desk: Desk) -> None:
    first = desk.tokens.access_token()
    desk.tokens.forget(first)
    assert desk.tokens.access_token() != first
    assert desk.server.asked == ["token/node", "token/node"]


def test_forgetting_an_old_token_keeps_the_new_one(desk: Desk) -> None:
    first = desk.tokens.access_token()
    second = desk.tokens.renew(first)
    desk.tokens.forget(first)
    assert desk.tokens.access_token() == second


@pytest.mark.parametrize(
    "refusal",
    [(401, "Api key is not recognized!"), (400, "Request body is incorrect"), (403, "No")],
)
def test_a_refused_key_is_access_denied_with_the_settings_name(desk: Desk, refusal: tuple[int, str]) -> None:
    status, text = refusal
    desk.server.answers["token/node"] = lambda: answer(status, {"msg": text})
    with pytest.raises(AccessDenied) as caught:
        desk.tokens.access_token()
    assert text in str(caught.value)
    assert "server.api_key" in str(caught.value)
    assert "the-key" not in str(caught.value)


def test_a_key_that_is_refused_later_is_access_denied_too(desk: Desk) -> None:
    first = desk.tokens.access_token()
    desk.server.answers["token/refresh"] = lambda: answer(422, {"msg": "Signature verification failed"})
    desk.server.answers["token/node"] = lambda: answer(401, {"msg": "Api key is not recognized!"})
    with pytest.raises(AccessDenied):
        desk.tokens.renew(first)


@pytest.mark.parametrize(
    "wrong",
    [
        Reply(call="x", status=404, body=b"<html>not here</html>"),
        Reply(call="x", status=401, body=b"<html>who are you</html>"),
        Reply(call="x", status=500, body=b'{"msg": "oops"}'),
        Reply(call="x", status=302),
        Reply(call="x", status=200, body=b"<html>hello</html>"),
        answer(200, {}),
        answer(200, {"access_token": "a", "refresh_token": "b"}),
        answer(200, {"access_token": "a.!.c", "refresh_token": "b"}),
        answer(200, {"access_token": jwt([]), "refresh_token": "b"}),
        answer(200, {"access_token": jwt({"sub": "four"}), "refresh_token": "b"}),
        answer(429, {"msg": "slow down"}),
    ],
)
def test_nonsense_instead_of_a_login_is_tried_again_later(desk: Desk, wrong: Reply) -> None:
    desk.server.answers["token/node"] = lambda: wrong
    with pytest.raises(ServerUnreachable):
        desk.tokens.access_token()


def test_tokens_and_key_do_not_show_themselves(desk: Desk) -> None:
    token = desk.tokens.access_token()
    shown = repr(vars(desk.tokens)) + repr(token) + str(token)
    assert "the-key" not in shown
    assert token.reveal() not in shown


def refused() -> Reply:
    return answer(401, {"msg": "Invalid API key!"})


def test_a_key_that_is_refused_is_shown_again_after_growing_pauses_only(desk: Desk) -> None:
    desk.server.answers["token/node"] = refused
    for _ in range(1800):
        with pytest.raises(AccessDenied, match="Invalid API key"):
            desk.tokens.access_token()
        desk.now += 2
    hour = 3600 / LAST_REFUSAL_SECONDS
    assert hour <= len(desk.server.asked) <= hour + 10


def test_a_key_that_is_taken_again_is_found_within_the_longest_pause(desk: Desk) -> None:
    desk.server.answers["token/node"] = refused
    for _ in range(100):
        with pytest.raises(AccessDenied):
            desk.tokens.access_token()
        desk.now += 60
    del desk.server.answers["token/node"]
    desk.now += LAST_REFUSAL_SECONDS
    assert desk.tokens.access_token()
    desk.server.answers["token/node"] = refused
    desk.tokens.forget(desk.tokens.access_token())
    with pytest.raises(AccessDenied):
        desk.tokens.access_token()
    desk.now += FIRST_REFUSAL_SECONDS
    del desk.server.answers["token/node"]
    assert desk.tokens.access_token()


def test_a_login_page_of_a_network_is_no_refusal_of_the_key(desk: Desk) -> None:
    page = Reply(call="POST /token/node", status=401, content_type="text/html", body=b"<html>Log in</html>")
    desk.server.answers["token/node"] = lambda: page
    with pytest.raises(ServerUnreachable):
        desk.tokens.access_token()


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_wants_no_logins_for_now_says_for_how_long(desk: Desk, status: int) -> None:
    desk.server.answers["token/node"] = lambda: Reply(call="POST /token/node", status=status, asked_pause=7.0)
    with pytest.raises(ServerUnreachable) as caught:
        desk.tokens.access_token()
    assert caught.value.after == 7.0


@pytest.mark.parametrize("wrong_by", [86_400.0, -86_400.0, 10 * 365 * 86_400.0])
def test_a_server_whose_clock_is_wrong_gives_tokens_that_last_as_long_as_any(
    desk: Desk, wrong_by: float
) -> None:
    desk.server.clock_offset = wrong_by
    first = desk.tokens.access_token()
    desk.now += 5.8 * HOURS
    assert desk.tokens.access_token() == first
    desk.now += 0.1 * HOURS
    assert desk.tokens.access_token() != first
    assert desk.server.asked == ["token/node", "token/refresh"]
