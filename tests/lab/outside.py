"""A place outside: a network namespace that is no address of this machine and no container, with names and web pages.

Owns the namespace, its link to this machine, and the program in it: a name server, and the same small web server on two
ports. Needs root. Must not know who asks.

    python -m tests.lab.outside NAMES ADDRESS     (inside of the namespace; tests use the context manager)
"""

import contextlib
import fnmatch
import http.client
import http.server
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

PORT, OTHER_PORT = 8080, 8081
START_SECONDS = 15
PAGE = b"a page outside"


class OutsideError(Exception):
    """The place cannot be made; the text says why."""


@dataclass(frozen=True)
class Outside:
    """The place: three addresses behind one link."""

    address: str
    second: str
    third: str

    def asked(self) -> list[str]:
        """Give every name the name server was asked for, with the kind of question."""
        return list(json.loads(self._get("/asked")))

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.address, PORT, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read()


@contextmanager
def outside(names: Mapping[str, tuple[str, ...]]) -> Iterator[Outside]:
    """Make the place; *names* maps patterns of names to addresses, where `{}` is the place's own first one."""
    number = f"{os.getpid() % 10000}{random.randrange(10)}"
    space, here, there = f"lab-{number}", f"lo{number}h", f"lo{number}t"
    net = f"198.51.100.{4 * random.randrange(1, 60)}"
    first = int(net.rpartition(".")[2])
    near, place = (
        f"198.51.100.{first}",
        Outside(*(f"198.51.100.{first + step}" for step in (1, 2, 3))),
    )
    _ip("netns", "add", space)
    try:
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", space)
        _ip("addr", "add", f"{near}/32", "dev", here)
        _ip("link", "set", here, "up")
        for address in (place.address, place.second, place.third):
            _ip("-n", space, "addr", "add", f"{address}/32", "dev", there)
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "link", "set", there, "up")
        for address in (place.address, place.second, place.third):
            _ip("route", "add", f"{address}/32", "dev", here, "src", near)
        _ip("-n", space, "route", "add", "default", "dev", there, "src", place.address)
        known = {name: [a.format(place.address) for a in addresses] for name, addresses in names.items()}
        with _program(space, known, place):
            yield place
    finally:
        _ip("netns", "delete", space)


@contextmanager
def _program(space: str, names: Mapping[str, list[str]], place: Outside) -> Iterator[None]:
    inside = ["nsenter", f"--net=/run/netns/{space}", sys.executable, "-m", "tests.lab.outside"]
    process = subprocess.Popen([*inside, json.dumps(names), place.address], stdin=subprocess.DEVNULL)
    try:
        _wait_until_answering(place, process)
        yield
    finally:
        process.kill()
        process.wait()


def _wait_until_answering(place: Outside, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            place.asked()
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
        else:
            return
    raise OutsideError("the place outside does not answer")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OutsideError(f"ip {' '.join(words)}: {done.stderr.strip()}")


# --- inside of the namespace ----------------------------------------------------------------------------------

ASKED: list[str] = []
_ADDRESS_QUESTION = 1


class _Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        page = json.dumps(ASKED).encode() if self.path == "/asked" else PAGE
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


def _answer(question: bytes, names: Mapping[str, list[str]]) -> bytes:
    at, labels = 12, []
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode(errors="replace"))
        at += 1 + question[at]
    end = at + 5
    name, kind = ".".join(labels).lower(), int.from_bytes(question[at + 1 : at + 3])
    ASKED.append(f"{name} {kind}")
    found = next((a for pattern, a in names.items() if fnmatch.fnmatch(name, pattern)), None)
    addresses = (found or []) if kind == _ADDRESS_QUESTION else []
    flags = b"\x81\x80" if found is not None else b"\x81\x83"
    answers = b"".join(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + socket.inet_aton(a) for a in addresses)
    return (
        question[:2] + flags + b"\0\x01" + len(addresses).to_bytes(2) + bytes(4) + question[12:end] + answers
    )


def _serve_names(names: Mapping[str, list[str]], address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        while True:
            question, sender = server.recvfrom(2048)
            server.sendto(_answer(question, names), sender)


def main(names: str, address: str) -> None:
    """Serve until killed."""
    threading.Thread(target=_serve_names, args=(json.loads(names), address), daemon=True).start()
    other = http.server.ThreadingHTTPServer(("", OTHER_PORT), _Pages)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    http.server.ThreadingHTTPServer(("", PORT), _Pages).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
