"""How the agent lives under a service manager: readiness, status, watchdog, and what signals ask of it.

Owns the wire form of systemd's notifications and the meaning of signals. Must not know what the agent does;
without systemd every call here does nothing.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final, Self

from node_agent.domain.messages import PruneAsked, ReloadAsked, StopAsked, StopKind
from node_agent.errors import ConfigError

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
DRAIN_SIGNAL: Final = signal.SIGUSR1
RELOAD_SIGNAL: Final = signal.SIGHUP
PRUNE_SIGNAL: Final = signal.SIGUSR2
_LONGEST_STATUS: Final = 500

Send = Callable[[bytes], None]
Asked = StopAsked | ReloadAsked | PruneAsked
Post = Callable[[Asked], None]


class Notifier:
    """Tells the service manager how the agent is."""

    def __init__(self, send: Send, *, watchdog_seconds: float | None = None) -> None:
        self._send = send
        self.watchdog_seconds = watchdog_seconds
        """How often `watchdog` must be called; None when nobody watches."""

    def ready(self) -> None:
        """Say that the agent is up, or that it has read its configuration again."""
        self._send(b"READY=1")

    def reloading(self) -> None:
        """Say that the configuration is read again; `ready` says when that is over."""
        # newer service managers tell by the moment which request is meant
        moment = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={moment}".encode())

    def status(self, text: str) -> None:
        """Say in one line what the agent is doing."""
        line = " ".join(text.split())[:_LONGEST_STATUS]
        self._send(f"STATUS={line}".encode())

    def stopping(self) -> None:
        """Say that the agent is on its way out."""
        self._send(b"STOPPING=1")

    def watchdog(self) -> None:
        """Say that the agent is alive."""
        self._send(b"WATCHDOG=1")


def notifier(environment: Mapping[str, str]) -> Notifier:
    """Give the notifier the service manager asked for, or one that does nothing."""
    place = environment.get("NOTIFY_SOCKET", "")
    address = socket_address(place)
    if address is None:
        return Notifier(_nowhere)
    return Notifier(_to_socket(address), watchdog_seconds=watchdog_interval(environment, os.getpid()))


def socket_address(place: str) -> str | None:
    """Read NOTIFY_SOCKET: a path, or `@name` for an abstract socket."""
    if place.startswith("@"):
        return "\0" + place[1:]
    return place if place.startswith("/") else None


def watchdog_interval(environment: Mapping[str, str], pid: int) -> float | None:
    """Give half of what systemd allows between two signs of life; None when it does not watch us."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    watched = environment.get("WATCHDOG_PID", str(pid))
    if not microseconds.isdecimal() or int(microseconds) == 0 or watched != str(pid):
        return None
    return int(microseconds) / 2_000_000


def _nowhere(_message: bytes) -> None:
    return


def _to_socket(address: str) -> Send:
    def send(message: bytes) -> None:
        # a service manager that is away is no reason to stop, and none to wait
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(1.0)
                channel.sendto(message, address)
        except OSError:
            return

    return send


class Signals:
    """Turns signals into messages: the first says stop, any further one now; the others have one meaning each."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._asked = False

    def __call__(self, number: int, _frame: FrameType | None = None) -> None:
        """Post what the signal means."""
        self._post(self._meaning(number))

    def _meaning(self, number: int) -> Asked:
        if number == PRUNE_SIGNAL:
            return PruneAsked()
        return ReloadAsked() if number == RELOAD_SIGNAL else StopAsked(self._kind(number))

    def _kind(self, number: int) -> StopKind:
        if number == DRAIN_SIGNAL:
            return StopKind.DRAIN
        again, self._asked = self._asked, True
        return StopKind.NOW if again else StopKind.STOP


def watch_signals(post: Post) -> None:
    """Have signals arrive as messages; *post* must be safe to call in the middle of anything."""
    on_signal = Signals(post)
    for number in (*STOP_SIGNALS, DRAIN_SIGNAL, RELOAD_SIGNAL, PRUNE_SIGNAL):
        signal.signal(number, on_signal)


class RunningAgent:
    """A process held by the kernel's own grip, so that its number cannot come to mean another one meanwhile."""

    def __init__(self, pid: int) -> None:
        try:
            self._grip = os.pidfd_open(pid)
        except OSError as error:
            raise ConfigError(f"The agent's process {pid} cannot be reached: {error.strerror}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._grip)

    def drain(self) -> None:
        """Ask the process to take nothing new, finish, and end."""
        self._send(DRAIN_SIGNAL)

    def prune(self) -> None:
        """Ask the process to remove what may go."""
        self._send(PRUNE_SIGNAL)

    def _send(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self._grip, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise ConfigError(
                "The agent belongs to another user.", hint="Run this command as that user, or as root."
            ) from error

    def ended_within(self, seconds: float) -> bool:
        """Wait for the end of the process, at most so long; tell whether it has ended."""
        ready, _, _ = select.select([self._grip], [], [], seconds)
        return bool(ready)
