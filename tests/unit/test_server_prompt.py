"""Answers of the server are confirmed as they come; no socket is opened."""

import socket
from http.client import ResponseNotReady

import pytest

from node_agent.server.address import ServerAddress, rest_session, socket_session
from node_agent.server.prompt import PromptConnection, PromptSecureConnection, confirm_at_once

ADDRESS = ServerAddress.of("https://server.example.org/api")


class StubLine:
    def __init__(self, error=None):
        self.error = error
        self.told = []

    def setsockopt(self, *option):
        if self.error:
            raise self.error
        self.told.append(option)


def test_what_arrives_is_confirmed_at_once():
    line = StubLine()
    confirm_at_once(line)
    assert line.told == [(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)]


@pytest.mark.parametrize("line", [StubLine(OSError("no such option")), object(), None])
def test_a_line_that_cannot_do_so_is_used_as_it_is(line):
    confirm_at_once(line)


@pytest.mark.parametrize("make", [rest_session, socket_session])
@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://server.example.org/api/run", PromptConnection),
        ("https://server.example.org/api/run", PromptSecureConnection),
    ],
)
def test_every_connection_to_the_server_does_so(make, url, kind):
    adapter = make(ADDRESS).get_adapter(url)
    assert adapter.poolmanager.connection_from_url(url).ConnectionCls is kind
    through = adapter.proxy_manager_for("http://proxy.example.org:3128")
    assert through.connection_from_url(url).ConnectionCls is kind


@pytest.mark.parametrize("kind", [PromptConnection, PromptSecureConnection])
def test_the_answer_is_read_after_that(kind):
    connection = kind("server.example.org")
    connection.sock = StubLine()
    with pytest.raises(ResponseNotReady):
        connection.getresponse()
    assert connection.sock.told
