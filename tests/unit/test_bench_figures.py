"""The bench's arithmetic."""

import pytest

from tests.bench.figures import (
    covered,
    length_outside,
    medians,
    own_part,
    p95,
    ratio,
    running_total,
    spread,
    steps_between,
    tenths,
)
from tests.bench.parts.calls import REQUEST, named


def test_a_spread_keeps_its_samples():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "p95": pytest.approx(2.9), "samples": [3.0, 1.0, 2.0]}


def test_of_one_sample_the_p95_is_the_sample():
    assert p95([0.5]) == 0.5


def test_the_p95_lies_among_the_largest_and_never_above_them():
    samples = [float(number) for number in range(1, 101)]
    assert 95 <= p95(samples) <= 96


def test_nothing_is_no_part_of_nothing():
    assert ratio(1.0, 0.0) is None
    assert ratio(1.0, 4.0) == 0.25


def test_medians_are_taken_of_those_samples_that_have_the_name():
    assert medians([{"a": 1.0}, {"a": 3.0, "b": 5.0}, {"a": 2.0}]) == {"a": 2.0, "b": 5.0}


def test_phases_add_up_to_the_whole():
    steps = steps_between([("", 10.0), ("listed", 10.5), ("claimed", 11.0), ("seen", 14.0)])
    assert steps == {"listed": 0.5, "claimed": 0.5, "seen": 3.0}


def test_a_moment_that_came_before_the_one_in_front_of_it_takes_no_time():
    steps = steps_between([("", 10.0), ("started", 12.0), ("told", 11.0), ("seen", 13.0)])
    assert steps == {"started": 2.0, "told": 0.0, "seen": 1.0}


def test_calls_at_the_same_time_count_once():
    assert covered([(3.0, 4.0), (1.0, 2.0), (1.5, 2.5), (5.0, 5.0)]) == [(1.0, 2.5), (3.0, 4.0)]


@pytest.mark.parametrize(
    ("interval", "length"),
    [((1.0, 2.0), 1.0), ((2.5, 3.5), 0.0), ((1.0, 3.0), 1.0), ((3.0, 5.0), 1.0), ((1.0, 6.0), 3.0)],
)
def test_what_lies_in_the_hole_is_left_out(interval, length):
    assert length_outside([interval], (2.0, 4.0)) == pytest.approx(length)


def test_the_own_part_is_what_server_and_engine_leave():
    # a run of 10 s: two calls of 1 s at once, one of 2 s while the container was there, which took 5 s by hand
    calls = [(1.0, 2.0), (1.0, 2.0), (4.0, 6.0)]
    assert own_part((0.0, 10.0), calls, (3.0, 8.0), 5.0) == pytest.approx(4.0)


def test_of_a_call_that_outlasts_the_run_only_what_lies_in_it_counts():
    assert own_part((0.0, 10.0), [(9.0, 12.0)], (3.0, 8.0), 5.0) == pytest.approx(4.0)


def test_ends_at_an_even_pace_give_tenths_of_that_pace():
    assert tenths([0.5 * number for number in range(101)]) == pytest.approx([0.5] * 10)


def test_a_queue_that_becomes_slower_shows_it_in_the_last_tenth():
    found = tenths([float(number) ** 2 for number in range(101)])
    assert found == sorted(found)
    assert found[-1] > 10 * found[0]


def test_tenths_of_few_ends_are_the_gaps_between_them():
    assert tenths([1.0, 2.0, 4.0]) == [1.0, 2.0]


def test_the_curve_counts_the_ends_in_their_order():
    assert running_total([12.0, 11.0], since=10.0) == [(1.0, 1.0), (2.0, 2.0)]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/containers/json?all=1", "/containers/json"),
        ("/containers/0123456789abcdef/start", "/containers/…/start"),
        ("/containers/node-agent-alpha-run-7/json", "/containers/…/json"),
        ("/images/sha256:0123456789abcdef/json", "/images/…/json"),
        ("/distribution/127.0.0.1:5000/bench/empty:latest/json", "/distribution/…/json"),
    ],
)
def test_ids_and_names_are_taken_out_of_what_the_engine_is_asked(path, shown):
    assert named(path) == shown


def test_a_request_to_the_engine_is_seen_among_what_is_sent_with_it():
    sent = b"POST /v1.41/containers/create?name=a HTTP/1.1\r\nHost: x\r\n\r\n{}GET /_ping HTTP/1.1\r\n\r\n"
    assert REQUEST.findall(sent) == [(b"POST", b"/containers/create?name=a"), (b"GET", b"/_ping")]
