"""An agent that dies where it is told to: the real program, with something deadly around its edges.

Owns the places where it may die, and its deaths. A place is the moment before or after a call of a port (the server, the
engine, the folders, the journal, the channel), or, within such a call, the moment before a request leaves, a file gets
its name, a folder is made, or something is deleted. The product knows nothing of this: the ports are wrapped here, and
what happens below them is heard by an audit hook.

    python -m tests.lab.mortal CONFIG BOOK

Each line on standard input is the order for one life: JSON with `run` (whose calls count, or a later one's; null for calls
that belong to no run) and `place` (null: live until asked to stop). Each life is a fork of this process, so that none pays
for imports, and takes the isolation for granted, which other tests prove. Two lines come back: the number of the life's
process, and how it ended. Every place passed is a line in BOOK: run, place.
"""

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from node_agent import app, cli, service
from node_agent.commands import PARTS
from node_agent.compute.ledger import JobRecord, Ledger
from node_agent.config import Settings
from node_agent.domain.container import ContainerSpec
from node_agent.domain.ports import StatusChange
from node_agent.domain.run import FIRST_JOB_RUN, Run
from node_agent.runtime.network import PreparedNetwork
from node_agent.site import Site

_INNER = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir", "http.client.send"})
_REQUEST = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n")
_CHANGING = (
    (re.compile(r"^[0-9-]+$"), "N"),
    (re.compile(r"[0-9a-f]{12,}"), "ID"),
    (re.compile(r"(?<=^answer-)\w+$"), "ID"),
    (re.compile(r"(?<=[/-])[0-9]+(?=[/.-]|$)"), "N"),
    (re.compile(r"/v1\.[0-9]+/"), "/"),
)


@dataclass(frozen=True)
class Order:
    """Where one life is to end."""

    run: int | None = None
    """This one, or one that came after it; None: a call that belongs to no run."""
    place: str | None = None

    def is_for(self, run: int | None, place: str) -> bool:
        """Tell whether the life ends here."""
        if place != self.place:
            return False
        return run == self.run if run is None or self.run is None else run >= self.run


class Fate:
    """Writes every place down, and ends the process at one of them."""

    def __init__(self, order: Order, book: Path) -> None:
        self._order = order
        self._book = os.open(book, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._here = threading.local()
        self.agent = ""
        """The agent's name, which is left out of places."""

    def meet(self, run: int | None, place: str) -> None:
        """Pass this place, or end here."""
        os.write(self._book, f"{json.dumps([run, place])}\n".encode())
        if self._order.is_for(run, place):
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def within(self, run: int | None, call: str) -> Iterator[None]:
        """Note what this thread is doing, for what happens below."""
        before = getattr(self._here, "call", None)
        self._here.call = (run, call)
        try:
            yield
        finally:
            self._here.call = before

    def hear(self, event: str, details: tuple[Any, ...]) -> None:
        """Listen to the interpreter: what a port does below itself is a place too."""
        if event not in _INNER:
            return
        doing = getattr(self._here, "call", None)
        what = None if doing is None else _WORDS[event](details)
        if doing is not None and what is not None:
            run, call = doing
            self.meet(run, f"within {call}: {what.replace(self.agent, 'AGENT')}")


def _request(details: tuple[Any, ...]) -> str | None:
    sent = details[1]
    found = _REQUEST.match(sent) if isinstance(sent, bytes) else None
    return None if found is None else _settled(f"{found[1].decode()} {found[2].decode().partition('?')[0]}")


def _file(word: str, at: int) -> Callable[[tuple[Any, ...]], str]:
    return lambda details: f"{word} {_settled(Path(os.fsdecode(details[at])).name)}"


_WORDS: Mapping[str, Callable[[tuple[Any, ...]], str | None]] = {
    "http.client.send": _request,
    "os.rename": _file("rename", 1),
    "os.mkdir": _file("mkdir", 0),
    "os.remove": _file("remove", 0),
    "os.rmdir": _file("rmdir", 0),
}


def _settled(text: str) -> str:
    """Take out what is different in each run."""
    for pattern, word in _CHANGING:
        text = pattern.sub(word, text)
    return text


class Deadly:
    """A port whose calls are places."""

    def __init__(self, name: str, port: Any, fate: Fate) -> None:
        self._name = name
        self._port = port
        self._fate = fate
        self._runs: dict[object, int] = {}
        """Which run a container belongs to."""

    def __getattr__(self, call: str) -> Any:
        found = getattr(self._port, call)
        if not callable(found):
            return found

        def deadly(*args: Any, **kwargs: Any) -> Any:
            run = self._run_of(args)
            place = f"{self._name}.{call}{_move(args)}"
            self._fate.meet(run, f"before {place}")
            with self._fate.within(run, place):
                answer = found(*args, **kwargs)
            if run is not None and isinstance(answer, str):
                self._runs[answer] = run
            self._fate.meet(run, f"after {place}")
            return answer

        return deadly

    def _run_of(self, args: tuple[Any, ...]) -> int | None:
        first = args[0] if args else None
        match first:
            case Run():
                return int(first.id)
            case StatusChange():
                return int(first.run.id)
            case ContainerSpec():
                return None if first.run_id is None else int(first.run_id)
            case int():
                # a task has the number of its run where every task has one run
                return int(first)
        return self._runs.get(first) if isinstance(first, str) else None


class DeadlyBooks(Deadly):
    """A part of the compute API whose calls are places; jobs are known there by their record, number or id."""

    def __init__(self, name: str, port: Any, fate: Fate, ledger: Ledger) -> None:
        super().__init__(name, port, fate)
        self._ledger = ledger

    def _run_of(self, args: tuple[Any, ...]) -> int | None:
        match args[:1]:
            case (JobRecord() as job,):
                return FIRST_JOB_RUN + job.number
            case (int() as number,):
                return FIRST_JOB_RUN + number
            case (str() as job_id,):
                found = self._ledger.job(job_id)
                return None if found is None else FIRST_JOB_RUN + found.number
        return None


def _move(args: tuple[Any, ...]) -> str:
    """Tell the lines of the journal apart by what they say."""
    match args:
        case (Run() as before, Run() as after):
            return f" {before.state.name} to {after.state.name}"
        case (StatusChange() as change,):
            return f" {change.status}"
    return ""


class ProvenSite(Site):
    """A machine whose isolation needs no proof at each start."""

    def prove(self, prepared: PreparedNetwork) -> None:
        """Take it for granted."""


class MortalApplication(app.Application):
    """The agent with deadly ports."""

    def __init__(self, settings: Settings, mailbox: app.Mailbox, stack: ExitStack, fate: Fate) -> None:
        super().__init__(settings, mailbox, stack)
        self._fate = fate
        site = ProvenSite.of(settings)
        self._site = replace(site, engine=self._deadly("engine", site.engine))
        self._journal = self._deadly("journal", self._journal)
        self._folders = self._deadly("folders", self._folders)
        self._server = self._deadly("server", self._server)

    def _deadly(self, name: str, port: Any) -> Any:
        return Deadly(name, port, self._fate)

    def _go_online(self) -> None:
        super()._go_online()
        self._listener = self._deadly("channel", self._listener)

    def _compute_service(self) -> Any:
        compute = super()._compute_service()
        if compute is not None:
            ledger = compute._ledger
            desk, results = compute._desk, DeadlyBooks("results", compute._results, self._fate, ledger)
            desk._ledger = DeadlyBooks("books", ledger, self._fate, ledger)
            desk._results = compute._results = results
            compute._desk = DeadlyBooks("desk", desk, self._fate, ledger)
        return compute


def _live(order: Order, config: str, book: Path) -> int:
    fate = Fate(order, book)
    sys.addaudithook(fate.hear)

    def run(settings: Settings) -> None:
        fate.agent = settings.name
        mailbox = app.Mailbox()
        service.watch_signals(mailbox.post)
        with ExitStack() as stack, suppress(app.Stopped):
            MortalApplication(settings, mailbox, stack, fate).run()

    return cli.main(["run", "-c", config], parts=replace(PARTS, run=run))


def main(config: str, book: Path) -> None:
    """Live as often as is asked for."""
    for line in sys.stdin:
        order = Order(**json.loads(line))
        process = os.fork()
        if process == 0:
            code = 70
            try:
                code = _live(order, config, book)
            finally:
                os._exit(code)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
