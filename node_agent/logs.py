"""The agent's own log: fixed event names with facts; readable on a terminal, one JSON object a line elsewhere.

Owns the form of a line, the vocabulary of event names, and the last defence against secrets in it. Must not
know what the agent does. Everything goes to standard error, or into the machine's journal where that ends there;
standard output belongs to the answers of commands.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from node_agent.domain.secret import Secret

MASK: Final = "***"
LONGEST_VALUE: Final = 2048
SHORTEST_SECRET: Final = 6
LONGEST_TRACE: Final = 32 * 1024
_DEPTH: Final = 4

_SECRET_KEY = re.compile(
    r"token|passw|secret|api_?key|authorization|credential|private_?key|cookie|jwt", re.IGNORECASE
)
_HARMLESS_KEY = frozenset({"token_hash_known", "token_expires_at", "token_expires_in"})
_SECRET_TEXT = re.compile(
    r"(?i:\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=\-]{8,}"
    r"|\beyJ[A-Za-z0-9_\-]{5,}\.[A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]*)?"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_NEWLINES = re.compile(r"[\n\t]")
_LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_LIBRARIES = ("requests", "urllib3", "docker", "socketio", "engineio", "waitress", "werkzeug", "websocket")

EVENTS: Mapping[str, str] = {
    "access_not_answered": "Who decides about access to a data set gave no answer; nobody is let in.",
    "agent_bug": "The agent ends because of a mistake of its own; the traceback belongs to a report of it.",
    "agent_ended": "The agent ends with an error that the operator can correct; `hint` says how.",
    "agent_ready": "The agent is logged in, the network is proven, work begins.",
    "agent_starting": "The agent starts.",
    "agent_stopped": "The agent has ended as asked.",
    "another_agent_left": "The other agent with this node's API key went offline.",
    "another_agent_noticed": "Another agent is online with this node's API key (`sign` says how that was seen); runs are"
    " taken with care.",
    "compute_api_listening": "The compute API can be reached.",
    "compute_connection_lost": "A consumer went away in the middle of a call.",
    "compute_request": "A call of the compute API was answered: its route, status and time, and nothing of what was asked.",
    "compute_request_bug": "A call of the compute API failed because of a mistake of ours; it was answered 503.",
    "compute_request_failed": "A call of the compute API could not be done now; the consumer was told to try again.",
    "configuration_reloaded": "The configuration was read again; `settings` names what changed and counts from now on.",
    "connection_unsteady": "The connection for events comes and goes; nothing more is said of it until that has settled.",
    "container_killed": "The container of a run that is to end was killed beside a step that hangs.",
    "container_left_behind": "A run that never started ends while the engine is away; its container is removed later.",
    "database_columns_unknown": "The column names of a database could not be read; the server is not told any.",
    "disk_back": "Everything that could not be written to disk was written; the work goes on.",
    "disk_lost": "The disk does not take what has to be written (`reason`); nothing is lost, it is tried until it does.",
    "disk_still_lost": "The disk takes nothing since so many `seconds`; said once an hour.",
    "disk_unsteady": "The disk takes things and then not, again and again; more is said once that settles.",
    "egress_listening": "The way outside (egress.allow) is open to algorithms.",
    "egress_refused": "An algorithm asked for a place outside that no rule allows; it got 403.",
    "egress_used": "An algorithm reached a place outside that a rule allows.",
    "engine_back": "The container engine answers (again).",
    "engine_lost": "The container engine does not answer; it is asked again until it does.",
    "engine_still_lost": "The container engine does not answer since so many `seconds`; said once an hour.",
    "engine_unsteady": "The container engine comes and goes; nothing more is said of it until that has settled.",
    "event_dropped": "A courtesy message to the server was not sent.",
    "event_ignored": "The server sent an event that cannot be understood.",
    "gate_bug": "A connection to a database server failed because of a mistake of ours.",
    "gate_ended": "A program the agent keeps running (squid, a tunnel) ended; it is started again.",
    "gate_leftover_ended": "A program that an earlier agent had left running was ended.",
    "hardening_relaxed": "The owner gives this image back some of what hardening takes (hardening.relax).",
    "heartbeat": "Every five minutes: what is waiting, working and owed, and what is away.",
    "image_pull_progress": "How far the pull of a run's image is, in bytes.",
    "input_changed": "The input of a run is not the one that was accepted first: it is refused.",
    "input_fetched": "The input of a run was fetched from the server's blob store.",
    "isolation_open": "The proof of isolation found something open.",
    "isolation_proven": "A container like a run's could reach nothing it must not reach.",
    "job_accepted": "The compute API took a job in; the log says whose and on what.",
    "job_deleted": "A consumer deleted a job and what it left.",
    "job_desk_bug": "Handing jobs over failed because of a mistake of ours; it is tried again.",
    "job_ended": "How a job ended is written down; status is its last number.",
    "job_not_as_asked": "A run asks for another image or other data than the books name for its job; it is ended.",
    "job_results_expired": "What a job left was deleted: it was kept long enough.",
    "job_stop_asked": "A consumer wants a job stopped.",
    "jobs_not_handed_over": "Jobs could not be handed over to the agent now; it is tried again.",
    "journal_pruned": "The journal forgot runs that were over for longer than keep.runs.",
    "library_message": "A library below the agent said something; `logger` names it.",
    "listing_bug": "Asking the server for open runs failed because of a mistake of ours; it is asked again.",
    "listing_shifted": "New runs came while open runs were listed, so that some may be missing; what was listed counts.",
    "live_log_interrupted": "The log of a run cannot be followed now; it is tried again, and the final log is whole.",
    "name_squatted": "Another user of this machine holds the abstract socket of the agent's name; it does not count.",
    "namespaces_not_ready": "No network namespace can be kept ready; runs get one made for each, and start slower.",
    "organization_key_changed": "The server shows another public key for an organization than before: results for it wait.",
    "phase_too_long": "A run took too long to begin: `phase` is pull or start (limits.pull_time, limits.start_time).",
    "proxy_access_refused": "An algorithm asked for what its run may not know (`reason`); `unsaid` counts lines left out.",
    "proxy_failed": "A call of an algorithm failed because of a mistake of ours; the algorithm got 500.",
    "proxy_left_sealed": "A result that an algorithm asked for cannot be opened with this key; it was passed as it is.",
    "proxy_listening": "The proxy can be reached by algorithms.",
    "proxy_refused": "A call of an algorithm was refused by the proxy.",
    "proxy_request": "A call of an algorithm was passed to the server.",
    "public_key_uploaded": "The server was given the public key of this organization.",
    "reload_bug": "Reading the configuration again failed because of a mistake of ours; the old settings stay.",
    "reload_refused": "The configuration that was read again has `faults`; the old settings stay.",
    "report_refused": "The server takes no final report for this run any more; the run is over.",
    "restart_needed": "After a reload: `settings` names what changed and counts only after a restart.",
    "result_left_plain": "The disk has no room for the sealed form of a result: it lies plain here until it was sent.",
    "result_stored": "The result of a run lies in the server's blob store; `blob` names it. The report follows.",
    "run_advanced": "A run moved to its next state.",
    "run_allowed": "The policy allows the run, on the content that will run; `rule` is the one that decided.",
    "run_ended_for_space": "The disk is short of space, this run has to end for it (`free`, `least`, `grown`, `written`).",
    "run_ending": "It is decided that and how a run ends; its container is stopped if it has one.",
    "run_ignored": "The server listed something that cannot be understood as a run.",
    "run_listed_after_its_end": "The server still lists a run that is over here.",
    "run_listed_twice": "The server listed one run twice on a page; the first one counts.",
    "run_received": "The server has a new run for this node.",
    "run_refused": "The policy refuses the run; `rule` is the one that decided.",
    "runs_left_at_server": "So many runs wait here that further ones (`runs`) are taken in later.",
    "runs_share_user": "All runs have one uid and share its limits: only an agent that is root gives each its own.",
    "runs_taken_up": "After a start: how many runs the journal holds that are not over.",
    "runs_wait": "Runs wait, and why (`cause`: slots, memory, parents, disk, engine, drain).",
    "runs_wait_no_longer": "No run has to wait any more.",
    "sandbox_bug": "The sandbox's server could not answer a call because of a mistake of ours; it answered 500.",
    "server_back": "The server answers (again).",
    "server_call": "A call to the server and how long it took.",
    "server_lost": "The server does not answer; it is asked again until it does.",
    "server_offline": "The connection for events is gone; it is made again.",
    "server_online": "The connection for events stands, the node is shown online.",
    "server_still_lost": "The server does not answer since so many `seconds`; said once an hour.",
    "server_still_offline": "The connection for events is gone since so many `seconds`; said once an hour.",
    "server_unsteady": "The server comes and goes; nothing more is said of it until that has settled.",
    "service_listening": "A database server can be reached by the algorithms that ask for its label.",
    "service_refused": "A connection to a database server was refused: no run there asked for its label.",
    "service_unreachable": "A run may reach a database server, but the server cannot be reached now.",
    "slot_lent_to_subtasks": "A run created subtasks; while it may wait for them it holds no slot.",
    "socket_closed": "The library stumbled while a connection for events ended.",
    "space_not_seen": "The free space, or what a run uses of it, cannot be found out now (`reason`); tried each second.",
    "step_bug": "A step of a run failed because of a mistake of ours.",
    "step_came_late": "A step that hung has ended after its run was taken further without it; its result is ignored.",
    "step_postponed": "A step of a run could not be done now and is tried again.",
    "step_stuck": "A step takes far longer than it should (`seconds`): the disk or the engine hangs.",
    "stop_asked": "Somebody asked the agent to end; `how` is stop, now or drain.",
    "stray_removed": "A container, folder, network, volume or image went that nothing needs; `why` says the reason.",
    "stray_stays": "Something that may go could not be removed now; it is tried again.",
    "strays_removed": "Things of ours that nothing needs any more were removed: how many.",
    "sweep_bug": "Looking for strays failed because of a mistake of ours.",
    "trouble": "Something outside is in the way; the same thing is tried again.",
    "tunnel_refused": "A tunnel is not made: the far machine shows another host key than the pinned one.",
    "user_names_not_told": "The policy lists users by name, which proves nothing here: list their ids.",
}
"""Every event name the agent writes, with what it says; the documentation lists the same."""


Journal = Callable[[Mapping[str, Any]], bool]
"""Takes an event in; False when it has to be written as a line after all."""


def set_up(
    *,
    level: str,
    form: str,
    secrets: Iterable[Secret] = (),
    stream: TextIO | None = None,
    journal: Journal | None = None,
) -> None:
    """Configure logging for this process; *form* is auto, console or json, *secrets* are masked everywhere.

    May be repeated at any time, also while other threads write.
    """
    target = sys.stderr if stream is None else stream
    structlog.configure(
        processors=[*_common(secrets), *_last(form, target, journal)],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Sink(target))),
        cache_logger_on_first_use=False,
    )
    _route_libraries()


def writes_json() -> bool:
    """Tell whether this process's log is read as JSON."""
    last = structlog.get_config()["processors"][-1]
    return structlog.is_configured() and isinstance(last, structlog.processors.JSONRenderer)


def say_ended(message: str, *, hint: str, faults: Iterable[str]) -> None:
    """Say in the log why the process ends with an error."""
    structlog.get_logger().error("agent_ended", reason=message, hint=hint, faults=list(faults))


def _common(secrets: Iterable[Secret]) -> list[Processor]:
    # a shorter one would be found in half of all words
    known = tuple(secret.reveal() for secret in secrets if len(secret.reveal()) >= SHORTEST_SECRET)
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_time,
        structlog.processors.format_exc_info,
        partial(_clean, known),
    ]


def _last(form: str, stream: TextIO, journal: Journal | None) -> list[Processor]:
    if form == "console" or (form == "auto" and stream.isatty()):
        return [_one_line, structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False)]
    line = structlog.processors.JSONRenderer(ensure_ascii=False)
    return [line] if journal is None or form == "json" else [_one_line, partial(_into, journal), line]


def _into(journal: Journal, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Give an event to the journal; only what it does not take becomes a line."""
    if journal(event):
        raise structlog.DropEvent
    return event


def _add_time(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    # the same three in front of every line, whatever was bound
    return {"timestamp": stamp, "level": event.pop("level"), "event": event.pop("event"), **event}


def _clean(known: tuple[str, ...], _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask what may be secret, and bound everything."""
    return {key: _clean_entry(key, value, known) for key, value in event.items()}


def _clean_entry(key: Any, value: Any, known: tuple[str, ...]) -> Any:
    name = str(key)
    if _SECRET_KEY.search(name) and name not in _HARMLESS_KEY and value is not None:
        return MASK
    return _clean_value(value, known, LONGEST_TRACE if name == "exception" else LONGEST_VALUE, _DEPTH)


def _clean_value(value: Any, known: tuple[str, ...], longest: int, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth and isinstance(value, Mapping):
        return {str(key): _clean_entry(key, item, known) for key, item in list(value.items())[:100]}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_clean_value(item, known, longest, depth - 1) for item in list(value)[:100]]
    return mask(str(value), known, longest)


def mask(text: str, known: Iterable[str] = (), longest: int = LONGEST_VALUE) -> str:
    """Mask the *known* secrets and everything that looks like a credential, and cut what is too long."""
    for secret in known:
        text = text.replace(secret, MASK)
    # cut only afterwards: half a secret is not recognised any more
    text = _SECRET_TEXT.sub(MASK, text)
    left_out = len(text) - longest
    return f"{text[:longest]}… ({left_out} more characters)" if left_out > 0 else text


def _one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Take the power from characters that would move the cursor or forge a line on a terminal."""
    return {key: _tame(key, value) if isinstance(value, str) else value for key, value in event.items()}


def _tame(key: str, text: str) -> str:
    safe = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
    return safe if key == "exception" else _NEWLINES.sub(" ", safe)


class _Sink:
    """Standard error that is allowed to be gone: a lost log line must not end the agent."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        try:
            self._stream.write(text.encode(errors="replace").decode())
        except (OSError, ValueError):
            return

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return


class _ToStructlog(logging.Handler):
    """Hands the libraries' messages to our own form of line."""

    def emit(self, record: logging.LogRecord) -> None:
        facts: MutableMapping[str, Any] = {"logger": record.name, "message": _message(record)}
        if record.exc_info:
            facts["exc_info"] = record.exc_info
        structlog.get_logger().log(record.levelno, "library_message", **facts)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        # a library's mistake in its own format string
        return str(record.msg)


def _route_libraries() -> None:
    root = logging.getLogger()
    for present in root.handlers[:]:
        if isinstance(present, _ToStructlog):
            root.removeHandler(present)
    root.addHandler(_ToStructlog())
    root.setLevel(logging.WARNING)
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
