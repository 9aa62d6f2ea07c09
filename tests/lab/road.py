"""The way between two programs on this machine, which can be closed, fall silent, become slow, or want TLS.

Owns a listening socket (TCP on loopback, or a file) and what passes. Must not know what is said on it.
"""

import contextlib
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Self

from tests.ports import free_port

LOOPBACK = "127.0.0.1"
Address = tuple[str, int] | str
_PIECE = 64 * 1024


class Road:
    """Passes connections on to *to*, as far as its mood allows; open at the beginning."""

    def __init__(self, to: Address, *, at: Path | None = None) -> None:
        self.to = to
        """Where it leads; may be changed at any time."""
        self.visitors = 0
        """Connections that were let in."""
        self._at: Address = str(at) if at else (LOOPBACK, free_port())
        self.context: ssl.SSLContext | None = None
        """Talk TLS to whoever comes; may be changed at any time."""
        self.bytes_a_second: float | None = None
        """How fast answers come; None: as fast as they do."""
        self.silent_after: int | None = None
        """After so many bytes of answers in one connection nothing more comes in it."""
        self._speaking = threading.Event()
        self._speaking.set()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._ends: set[socket.socket] = set()

    @property
    def port(self) -> int:
        """The port it is entered at."""
        assert not isinstance(self._at, str)
        return self._at[1]

    def open(self) -> None:
        """Let connections in, at the same place as before."""
        family = socket.AF_UNIX if isinstance(self._at, str) else socket.AF_INET
        if isinstance(self._at, str):
            Path(self._at).unlink(missing_ok=True)
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self._at)
        listener.listen(128)
        self._listener = listener
        self._closed.clear()
        threading.Thread(target=self._let_in, args=(listener,), name="road", daemon=True).start()

    def close(self) -> None:
        """Refuse new connections and cut those there are."""
        self._closed.set()
        listener, self._listener = self._listener, None
        if listener is not None:
            _cut(listener)
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            _cut(end)

    def fall_silent(self) -> None:
        """Take everything in and pass nothing on."""
        self._speaking.clear()

    def speak(self) -> None:
        """Pass on what has waited, and everything from now on."""
        self._speaking.set()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.speak()
        self.close()

    # --- connections, each with two threads of its own ---

    def _let_in(self, listener: socket.socket) -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            self.visitors += 1
            threading.Thread(target=self._connect, args=(caller,), daemon=True).start()

    def _connect(self, caller: socket.socket) -> None:
        try:
            if self.context is not None:
                caller = self.context.wrap_socket(caller, server_side=True)
            callee = _connected(self.to)
        except OSError:
            caller.close()
            return
        with self._lock:
            self._ends |= {caller, callee}
        if self._listener is None:
            self.close()
        threading.Thread(target=self._carry, args=(caller, callee), daemon=True).start()
        self._carry_back(callee, caller)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while piece := source.recv(_PIECE):
                self._speaking.wait()
                target.sendall(piece)
        self._end(target, socket.SHUT_WR)

    def _carry_back(self, source: socket.socket, target: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError, ValueError):
            while piece := source.recv(_PIECE):
                self._speaking.wait()
                passed += self._sent(piece, target, passed)
        self._end(target, socket.SHUT_RDWR)
        self._end(source, socket.SHUT_RDWR)

    def _sent(self, piece: bytes, target: socket.socket, passed: int) -> int:
        if self.silent_after is not None and passed + len(piece) > self.silent_after:
            target.sendall(piece[: max(0, self.silent_after - passed)])
            self._closed.wait()
            return len(piece)
        if self.bytes_a_second is None:
            target.sendall(piece)
            return len(piece)
        step = max(1, int(self.bytes_a_second / 10))
        for start in range(0, len(piece), step):
            target.sendall(piece[start : start + step])
            time.sleep(step / self.bytes_a_second if self.bytes_a_second else 0)
        return len(piece)

    def _end(self, end: socket.socket, how: int) -> None:
        with contextlib.suppress(OSError):
            end.shutdown(how)
        if how == socket.SHUT_RDWR:
            with self._lock:
                self._ends.discard(end)
            end.close()


def _connected(to: Address) -> socket.socket:
    made = socket.socket(socket.AF_UNIX if isinstance(to, str) else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.connect(to)
    except OSError:
        made.close()
        raise
    return made


def _cut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
