"""A line of the log: its form, and what must never be in it."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from node_agent import logs
from node_agent.domain.secret import Secret
from node_agent.runlog import log_of
from tests.doubles.core import make_run, make_task

KEY = "00000000-0000-4000-8000-00000000abcd"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOjR9.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def written(form: str = "json", *, level: str = "debug") -> io.StringIO:
    stream = io.StringIO()
    logs.set_up(level=level, form=form, secrets=[Secret(KEY), Secret("")], stream=stream)
    return stream


def line(**facts: Any) -> dict[str, Any]:
    stream = written()
    structlog.get_logger().info("run_advanced", **facts)
    parsed: dict[str, Any] = json.loads(stream.getvalue())
    return parsed


def test_a_line_is_one_json_object_that_begins_with_time_level_and_event() -> None:
    parsed = line(to="pulled")
    assert list(parsed) == ["timestamp", "level", "event", "to"]
    assert parsed["timestamp"].endswith("Z")
    assert len(parsed["timestamp"]) == len("2026-01-01T00:00:00.000Z")


def test_every_line_of_a_run_names_run_task_and_image() -> None:
    stream = written()
    task = make_task(3, image="x/y:1")
    log = log_of(make_run(7, task=task))
    log.info("run_advanced")
    log.warning("step_postponed")
    for text in stream.getvalue().splitlines():
        assert {"run_id": 7, "task_id": 3, "image": "x/y:1"}.items() <= json.loads(text).items()


def test_lines_below_the_level_are_not_written() -> None:
    stream = written(level="warning")
    structlog.get_logger().info("run_advanced")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    "key", ["token", "container_token", "password", "api_key", "Authorization", "secret", "Cookie"]
)
def test_a_key_that_sounds_like_a_secret_hides_its_value(key: str) -> None:
    assert line(**{key: "hunter2"})[key] == "***"
    assert line(headers={key: "hunter2"})["headers"] == {key: "***"}


@pytest.mark.parametrize(
    "text",
    [
        f"key {KEY} refused",
        f"Bearer {JWT}",
        f"token={JWT}",
        "bearer abcdef0123456789",
        "https://u:hunter2@h/x",
    ],
)
def test_what_looks_like_a_credential_is_masked_inside_any_text(text: str) -> None:
    parsed = json.dumps([line(reason=text), line(facts=[{"deep": text}]), line(error=ValueError(text))])
    for secret in (KEY, JWT, "abcdef0123456789", "hunter2"):
        assert secret not in parsed
    assert parsed.count("***") == 3


def test_a_secret_across_the_cut_of_a_long_value_is_masked() -> None:
    assert KEY[:8] not in line(reason="x" * (logs.LONGEST_VALUE - 10) + KEY)["reason"]


def test_a_secret_is_not_written_even_when_it_is_logged_as_such() -> None:
    assert line(value=Secret("hunter2"))["value"] == "***"


def test_a_traceback_is_masked_too() -> None:
    stream = written()
    try:
        int(f"no {KEY}")
    except ValueError:
        structlog.get_logger().exception("step_bug")
    assert KEY not in stream.getvalue()
    assert "'no ***'" in json.loads(stream.getvalue())["exception"]


def test_a_long_value_is_cut_and_the_cut_is_marked() -> None:
    reason = line(reason="x" * 10_000)["reason"]
    assert len(reason) < logs.LONGEST_VALUE + 50
    assert reason.endswith("… (7952 more characters)")


def test_numbers_truth_values_and_nothing_stay_what_they_are() -> None:
    parsed = line(a=1, b=True, c=None, d=0.5, e=[1, {"f": 2}])
    assert [parsed[key] for key in "abcde"] == [1, True, None, 0.5, [1, {"f": 2}]]


def test_endless_structures_are_bounded() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert len(json.dumps(line(value=endless))) < 500
    assert len(line(value=list(range(1000)))["value"]) == 100


def test_on_a_terminal_nothing_can_forge_a_line_or_move_the_cursor() -> None:
    stream = written("console")
    structlog.get_logger().info("run_advanced", reason="a\n2026 [error] forged \x1b[2J \u202e")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b[2J" not in stream.getvalue()


def test_a_library_speaks_through_the_same_door() -> None:
    stream = written()
    logging.getLogger("urllib3.connectionpool").warning("retry for %s", f"Bearer {JWT}")
    parsed = json.loads(stream.getvalue())
    assert parsed["event"] == "library_message"
    assert parsed["logger"] == "urllib3.connectionpool"
    assert parsed["message"] == "retry for ***"


def test_a_library_that_chats_or_stumbles_over_its_own_words_does_no_harm() -> None:
    stream = written()
    logging.getLogger("socketio.client").info("chat")
    assert stream.getvalue() == ""
    # the test runner listens too, and would call the mistake an error of the test
    logging.getLogger().handlers[:] = [
        door for door in logging.getLogger().handlers if isinstance(door, logs._ToStructlog)
    ]
    logging.getLogger("docker").warning("%d", "no number")
    assert json.loads(stream.getvalue())["message"] == "%d"


def test_setting_up_twice_does_not_write_twice() -> None:
    written()
    stream = written()
    logging.getLogger("docker").error("x")
    assert len(stream.getvalue().splitlines()) == 1


class GoneStream(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_log_that_nobody_reads_any_more_does_not_end_the_agent() -> None:
    logs.set_up(level="info", form="json", stream=GoneStream())
    structlog.get_logger().info("heartbeat")


def test_auto_is_json_where_there_is_no_terminal() -> None:
    written("auto")
    assert logs.writes_json()
    written("console")
    assert not logs.writes_json()


def test_the_end_with_an_error_is_one_line() -> None:
    stream = written()
    logs.say_ended("no key", hint="get one", faults=["a", "b"])
    assert json.loads(stream.getvalue())["faults"] == ["a", "b"]
