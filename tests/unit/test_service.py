"""Notifications to the service manager, and what signals mean."""

import os
import re
import signal

import pytest

from node_agent.domain.messages import PruneAsked, ReloadAsked, StopAsked, StopKind
from node_agent.errors import ConfigError
from node_agent.service import (
    Asked,
    Notifier,
    RunningAgent,
    Signals,
    notifier,
    socket_address,
    watchdog_interval,
)


def test_notifications_have_the_form_systemd_expects() -> None:
    sent: list[bytes] = []
    systemd = Notifier(sent.append)
    systemd.ready()
    systemd.status("2 runs\nSTOPPING=1")
    systemd.watchdog()
    systemd.stopping()
    assert sent == [b"READY=1", b"STATUS=2 runs STOPPING=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_reload_is_told_with_its_moment_as_newer_service_managers_want_it() -> None:
    sent: list[bytes] = []
    Notifier(sent.append).reloading()
    state, _, moment = sent[0].decode().partition("\n")
    assert state == "RELOADING=1"
    assert re.fullmatch(r"MONOTONIC_USEC=[1-9][0-9]*", moment)


def test_without_systemd_nothing_is_said_and_nobody_watches() -> None:
    quiet = notifier({})
    quiet.ready()
    assert quiet.watchdog_seconds is None


def test_a_service_manager_that_is_gone_does_no_harm() -> None:
    notifier({"NOTIFY_SOCKET": "/nonexistent/notify"}).ready()


@pytest.mark.parametrize(
    ("place", "address"),
    [("", None), ("/run/notify", "/run/notify"), ("@/org/x", "\0/org/x"), ("vsock:2:1", None)],
)
def test_the_notification_socket_may_be_a_path_or_abstract(place: str, address: str | None) -> None:
    assert socket_address(place) == address


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_served_twice_as_often_as_asked(
    environment: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_interval(environment, 7) == seconds


def kinds(*numbers: int) -> list[StopKind]:
    posted: list[Asked] = []
    on_signal = Signals(posted.append)
    for number in numbers:
        on_signal(number)
    return [message.kind for message in posted if isinstance(message, StopAsked)]


def test_the_first_signal_stops_and_any_further_one_stops_at_once() -> None:
    assert kinds(signal.SIGTERM, signal.SIGINT, signal.SIGTERM) == [StopKind.STOP, StopKind.NOW, StopKind.NOW]


def test_a_drain_may_be_cut_short_by_a_stop() -> None:
    assert kinds(signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM) == [
        StopKind.DRAIN,
        StopKind.DRAIN,
        StopKind.STOP,
    ]


def test_a_signal_asks_for_everything_to_be_removed_that_may_go() -> None:
    posted: list[Asked] = []
    Signals(posted.append)(signal.SIGUSR2)
    assert posted == [PruneAsked()]


def test_a_hangup_asks_for_a_reload_and_never_ends_the_agent() -> None:
    posted: list[Asked] = []
    on_signal = Signals(posted.append)
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
        on_signal(number)
    assert posted == [ReloadAsked(), ReloadAsked(), StopAsked(StopKind.STOP)]


def test_a_process_that_lives_has_not_ended() -> None:
    with RunningAgent(os.getpid()) as agent:
        assert not agent.ended_within(0)


def test_a_process_that_is_no_more_cannot_be_held() -> None:
    with pytest.raises(ConfigError, match="cannot be reached"):
        RunningAgent(2**22 + 1)
