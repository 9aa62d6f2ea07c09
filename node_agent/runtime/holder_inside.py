"""What the holder of a network namespace does inside its container: close the engine's name server, give up its rights.

A Docker engine answers questions for names at 127.0.0.11 in every namespace of a network that was made by hand. Its answers
carry names of containers and of the network: the agent's name, and which runs are on this machine now. A route that leads
nowhere closes that address for everybody in the namespace, and whoever joins has no right to change it.

This text runs there by itself, on nothing but the standard library and without the rest of the package.
"""

import os
import signal
import socket
import struct
import sys

NAME_SERVER = "127.0.0.11"
READY = "closed"
"""What is written when the address is closed and no right is left."""

_NEW_ROUTE = 24
_REQUEST, _ACKNOWLEDGE, _CREATE, _EXCLUSIVE = 0x1, 0x4, 0x400, 0x200
_DESTINATION = 1
_LOCAL_TABLE = 255
_STATIC = 4
_UNREACHABLE = 7
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")


def unreachable_route(address: str) -> bytes:
    """Return the kernel's message that makes one IPv4 address unreachable, in the table that is asked first."""
    destination = struct.pack("=HH4s", 8, _DESTINATION, socket.inet_aton(address))
    route = _ROUTE.pack(socket.AF_INET, 32, 0, 0, _LOCAL_TABLE, _STATIC, 0, _UNREACHABLE, 0)
    flags = _REQUEST | _ACKNOWLEDGE | _CREATE | _EXCLUSIVE
    size = _HEADER.size + len(route) + len(destination)
    return _HEADER.pack(size, _NEW_ROUTE, flags, 1, 0) + route + destination


def close_address(address: str) -> None:
    """Add the route. Raises OSError when the kernel refuses it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(unreachable_route(address))
        (error,) = struct.unpack_from("=i", kernel.recv(4096), _HEADER.size)
    if error:
        raise OSError(-error, os.strerror(-error))


def give_up_rights(user: int, group: int) -> None:
    """Become an ordinary user; the kernel takes every capability away with that."""
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


if __name__ == "__main__":
    close_address(NAME_SERVER)
    give_up_rights(*map(int, os.environ["NODE_AGENT_HOLDER"].split(":")))
    sys.stdout.write(READY)
    sys.stdout.flush()
    signal.pause()
