"""What the engine itself says of containers: when each was created, started and ended.

Owns the stream of the engine's events. Must not know who made the containers: they are told apart by their labels.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import docker

from tests.bench.failures import BenchError

CREATED, STARTED, ENDED = "create", "start", "die"
_ACTIONS = (CREATED, STARTED, ENDED)
_LATE_SECONDS = 30


@dataclass
class Seen:
    """One container: its labels, and when what happened to it, in seconds since the epoch."""

    labels: dict[str, str]
    moments: dict[str, float] = field(default_factory=dict)


class EngineWatch:
    """Follows the engine's events while it is entered."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client
        self._seen: dict[str, Seen] = {}
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        wanted = {"type": "container", "event": list(_ACTIONS)}
        self._stream = self._client.events(decode=True, filters=wanted, since=int(time.time()))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._reader.join(_LATE_SECONDS)

    def with_label(self, name: str, value: str) -> list[Seen]:
        """Return the containers that carry a label, oldest first."""
        with self._changed:
            return [one for one in self._seen.values() if one.labels.get(name) == value]

    def one_with(self, labels: dict[str, str], *moments: str) -> Seen:
        """Return the container with these labels, once the engine has told these moments of it."""
        return self._once(lambda: self._match(labels, moments), f"of a container with {labels}")

    def _match(self, labels: dict[str, str], moments: tuple[str, ...]) -> Seen | None:
        for one in self._seen.values():
            if labels.items() <= one.labels.items() and one.moments.keys() >= set(moments):
                return one
        return None

    def _once(self, look: Callable[[], Seen | None], what: str) -> Seen:
        deadline = time.monotonic() + _LATE_SECONDS
        with self._changed:
            while (found := look()) is None:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise BenchError(f"the engine told nothing {what} within {_LATE_SECONDS} s")
            return found

    def _read(self) -> None:
        # closing the stream from the other thread ends the reading with whatever the library makes of it
        with contextlib.suppress(Exception):
            for event in self._stream:
                self._note(event)

    def _note(self, event: dict[str, Any]) -> None:
        with self._changed:
            one = self._seen.setdefault(event["id"], Seen(labels=event["Actor"]["Attributes"]))
            one.moments[event["Action"]] = event["timeNano"] / 1e9
            self._changed.notify_all()
