"""Ports for servers of tests."""

import random
import socket

# Below the range the kernel takes ports for outgoing connections from: a server that is stopped and started again
# must not find its port in the hands of another test's client.
_FIRST, _LAST = 20_000, 32_000
_TRIES = 100
_chance = random.SystemRandom()  # two test processes that share a seed must not make the same choices


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on at the moment."""
    for _ in range(_TRIES):
        port = _chance.randrange(_FIRST, _LAST)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {_FIRST} and {_LAST} on {host}")
