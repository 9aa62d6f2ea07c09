"""An entry of the machine's journal: its form, its fields, and what happens when the journal does not take it."""

import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from node_agent import logs
from node_agent.domain.secret import Secret
from node_agent.journald import Journald, encoded, fields_of, journald_of

KEY = "00000000-0000-4000-8000-00000000abcd"


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def taken(
    *, form: str = "auto", send: Callable[[bytes], None] | None = None
) -> tuple[list[bytes], io.StringIO]:
    """Set the log up beside a journal; give what the journal gets and what is written as lines."""
    entries: list[bytes] = []
    stream = io.StringIO()
    journal = Journald(entries.append if send is None else send)
    logs.set_up(level="info", form=form, secrets=[Secret(KEY)], stream=stream, journal=journal)
    return entries, stream


def fails_with(error: Exception) -> Callable[[bytes], None]:
    def send(_entry: bytes) -> None:
        raise error

    return send


# --- fields ---------------------------------------------------------------------------------------------------


def test_each_fact_is_a_field_and_the_message_is_a_line_for_people() -> None:
    event = {"timestamp": "now", "level": "warning", "event": "run_refused", "run_id": 7, "reason": "no rule"}
    assert fields_of(event) == {
        "MESSAGE": 'run_refused run_id=7 reason="no rule"',
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "node-agent",
        "NODE_AGENT_EVENT": "run_refused",
        "NODE_AGENT_RUN_ID": "7",
        "NODE_AGENT_REASON": "no rule",
    }


def test_what_is_not_there_has_no_field_and_what_is_nested_is_json() -> None:
    fields = fields_of({"level": "info", "event": "x", "digest": None, "ok": True, "faults": ["a", {"b": 1}]})
    assert fields["MESSAGE"] == 'x ok=true faults=["a", {"b": 1}]'
    assert json.loads(fields["NODE_AGENT_FAULTS"]) == ["a", {"b": 1}]
    assert "NODE_AGENT_DIGEST" not in fields


@pytest.mark.parametrize(
    ("level", "priority"),
    [("debug", "7"), ("info", "6"), ("warning", "4"), ("error", "3"), ("critical", "2"), ("odd", "6")],
)
def test_the_level_becomes_the_weight_that_journals_know(level: str, priority: str) -> None:
    assert fields_of({"level": level, "event": "x"})["PRIORITY"] == priority


def test_a_text_cannot_pass_for_further_facts() -> None:
    assert fields_of({"event": "x", "reason": 'a" run_id=8'})["MESSAGE"] == r'x reason="a\" run_id=8"'


@pytest.mark.parametrize("key", ["strange key", "umlaut-ä", "x" * 100, "_hidden"])
def test_every_name_is_one_that_the_journal_accepts(key: str) -> None:
    (name,) = fields_of({"event": "x", key: 1}).keys() - {
        *("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "NODE_AGENT_EVENT")
    }
    assert len(name) <= 64
    assert name.startswith("NODE_AGENT_")
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def test_a_traceback_stands_below_the_line() -> None:
    fields = fields_of({"event": "step_bug", "exception": "Traceback\n  File"})
    assert fields["MESSAGE"] == "step_bug\nTraceback\n  File"


def test_a_value_of_several_lines_is_written_with_its_length() -> None:
    assert encoded({"A": "1", "B": "x\ny"}) == b"A=1\nB\n\x03\0\0\0\0\0\0\0x\ny\n"


def test_a_text_that_is_no_unicode_does_no_harm() -> None:
    assert encoded({"A": "\udcff"}) == b"A=?\n"


# --- where the log goes ---------------------------------------------------------------------------------------


def test_what_the_journal_takes_is_not_written_as_a_line() -> None:
    entries, stream = taken()
    structlog.get_logger().info("run_advanced", to="pulled")
    assert b"NODE_AGENT_TO=pulled\n" in entries[0]
    assert stream.getvalue() == ""


def test_a_secret_reaches_the_journal_as_little_as_a_line() -> None:
    entries, _ = taken()
    structlog.get_logger().info("trouble", reason=f"no {KEY}", token="hunter2")
    assert b"NODE_AGENT_TOKEN=***\n" in entries[0]
    assert KEY.encode() not in entries[0]
    assert b"hunter2" not in entries[0]


def test_a_text_cannot_make_an_entry_or_a_line_of_its_own() -> None:
    entries, _ = taken()
    structlog.get_logger().info("trouble", reason="a\nPRIORITY=0\x1b[2J")
    assert b"\nPRIORITY=0" not in entries[0]
    assert b"\x1b" not in entries[0]


@pytest.mark.parametrize("error", [FileNotFoundError(), ConnectionRefusedError(), OSError(90, "too long")])
def test_what_the_journal_does_not_take_is_written_as_a_line(error: Exception) -> None:
    _, stream = taken(send=fails_with(error))
    structlog.get_logger().info("run_advanced", run_id=7)
    assert json.loads(stream.getvalue())["run_id"] == 7


def test_a_journal_that_hangs_costs_the_line_and_not_the_agent() -> None:
    _, stream = taken(send=fails_with(TimeoutError()))
    structlog.get_logger().info("run_advanced")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_form_that_the_owner_names_is_kept_under_systemd_too(form: str) -> None:
    entries, stream = taken(form=form)
    structlog.get_logger().info("run_advanced")
    assert entries == []
    assert "run_advanced" in stream.getvalue()


def test_an_agent_that_ends_says_so_in_the_journal() -> None:
    entries, _ = taken()
    assert logs.writes_json()
    logs.say_ended("no key", hint="get one", faults=["a"])
    assert b"NODE_AGENT_EVENT=agent_ended\n" in entries[0]


# --- whether there is a journal -------------------------------------------------------------------------------


def place_of(file: Any) -> str:
    status = os.fstat(file.fileno())
    return f"{status.st_dev}:{status.st_ino}"


def test_the_journal_is_used_where_standard_error_ends_there(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        assert journald_of({"JOURNAL_STREAM": place_of(stream)}, stream) is not None


def test_without_a_journal_behind_standard_error_there_is_none(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        assert journald_of({}, stream) is None
        assert journald_of({"JOURNAL_STREAM": "8:1"}, stream) is None
    assert journald_of({"JOURNAL_STREAM": "8:1"}, io.StringIO()) is None
