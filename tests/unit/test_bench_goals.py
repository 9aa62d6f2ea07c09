"""What the bench says of its goals, and where it writes its figures."""

import ast
from pathlib import Path

import pytest

from tests.bench import document
from tests.bench.__main__ import PARTS, STAGES, main, told
from tests.bench.document import FIRST_MARK, LAST_MARK, renewed
from tests.bench.failures import BenchError
from tests.bench.goals import GOALS, rows_of, size_row
from tests.bench.scale import WHOLE
from tests.bench.tables import DRAWN, Table, as_markdown

BENCH = Path(document.__file__).parent


def way(median):
    return {"median": median, "p95": median, "samples": [median]}


def empty_part(ours, peers, own=0.1):
    ways = {"agent": ours, "vantage6_node": peers, "engine": 0.3, "engine_joining": 0.2, "docker_run": 0.4}
    return {
        "seconds": {name: way(median) for name, median in ways.items()},
        "own": way(own),
        "server_calls": way(5.0),
        "phases": {"report": 0.02},
    }


def sizes(*rows):
    return [
        {
            "size": size,
            "seconds": way(seconds),
            "memory": {"median": 1.0, "samples": [1.0, memory]},
            "plain_send": way(1.0),
            "plain_encrypt": way(0.5),
        }
        for size, seconds, memory in rows
    ]


def met(parts):
    return {row.what: row.is_met for row in rows_of(parts) if row.is_met is not None}


def result(parts, failed=None):
    facts = (
        "commit",
        "cpu",
        "memory_gib",
        "system",
        "kernel",
        "engine",
        "python",
        "load_before",
        "cores",
    )
    return {
        "machine": dict.fromkeys(facts, "?"),
        "scale": "quick",
        "parts": parts,
        "failed": failed or {},
    }


def test_what_was_not_measured_is_neither_met_nor_missed():
    rows = rows_of({})
    assert len(rows) == len(GOALS)
    assert {(row.measured, row.is_met) for row in rows} == {("not measured", None)}


def test_every_goal_belongs_to_a_part_and_every_numbered_goal_is_there():
    assert {goal.part for goal in GOALS} <= set(PARTS)
    assert {goal.number for goal in GOALS} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize(("ours", "is_met"), [(0.5, True), (0.51, False)])
def test_an_empty_run_may_take_a_quarter_of_the_others(ours, is_met):
    found = met({"empty": empty_part(ours, 2.0)})
    assert found["empty run, ours / vantage6's own node"] is is_met


@pytest.mark.parametrize(("ours", "is_met"), [(4.0, True), (3.9, False)])
def test_a_throughput_has_to_be_at_least_so_large(ours, is_met):
    ways = {
        name: {"per_second": way(pace)}
        for name, pace in {"agent": ours, "engine": 5.0, "vantage6_node": 0.1}.items()
    }
    found = met({"burst": {"runs": 100, "ways": ways}})
    assert found["burst, throughput ours / bare engine, 100 runs"] is is_met


def test_the_highest_memory_of_all_rounds_counts():
    rows = sizes((200_000_000, 1.0, 41.0))
    found = met({"result": {"plain": rows, "encrypted": rows}})
    assert found["plain result, memory above idle, 200 MB"] is False


def test_the_time_of_a_result_is_held_against_sending_and_encrypting_it():
    rows = sizes((200_000_000, 1.9, 1.0))
    found = met({"result": {"plain": rows, "encrypted": rows}})
    assert found["encrypted result, time / plain client, 200 MB"] is True


def test_a_quick_bench_is_judged_by_the_largest_size_it_had():
    rows = sizes((1000, 1.0, 1.0), (20_000_000, 2.0, 2.0))
    assert size_row({"plain": rows}, "plain")["size"] == 20_000_000


def test_sizes_above_the_one_the_goal_names_are_not_judged():
    rows = sizes((200_000_000, 1.0, 1.0), (500_000_000, 2.0, 2.0))
    assert size_row({"plain": rows}, "plain")["size"] == 200_000_000


def test_a_table_is_written_as_markdown():
    table = Table("Title", ("", "a"), (("row", "1"),))
    assert table.as_markdown() == "**Title**\n\n|  | a |\n| --- | ---: |\n| row | 1 |"


def test_the_section_has_goals_tables_charts_and_what_failed():
    text = as_markdown(result({"empty": empty_part(0.5, 2.0)}, {"burst": "gone"}))
    assert "| 1 empty run, ours / vantage6's own node | at most 0.25 | 0.25 | yes |" in text
    assert "| our agent | 0.50 s | 0.50 s | 1.00 | 1 |" in text
    assert "![empty](performance/empty.png)" in text
    assert "Not measured, since it failed: burst." in text


def test_charts_are_promised_for_those_parts_that_are_drawn():
    tree = ast.parse((BENCH / "charts.py").read_text())
    (drawn,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "DRAWN"
    ]
    assert isinstance(drawn, ast.Dict)
    assert {key.value for key in drawn.keys if isinstance(key, ast.Constant)} == DRAWN


def test_every_part_has_its_module_and_every_stage_its_parts():
    assert all((BENCH / "parts" / f"{module}.py").exists() for module in PARTS.values())
    assert set(STAGES) <= set(PARTS)


def test_only_what_stands_between_the_marks_is_written_anew():
    text = f"before\n{FIRST_MARK}\nold\n{LAST_MARK}\nafter\n"
    assert renewed(text, r"new \1") == f"before\n{FIRST_MARK}\n\nnew \\1\n\n{LAST_MARK}\nafter\n"
    assert renewed(renewed(text, "one"), "one") == renewed(text, "one")


@pytest.mark.parametrize("text", ["no marks", f"{FIRST_MARK} only the first"])
def test_a_page_without_its_marks_is_left_alone(text):
    with pytest.raises(BenchError):
        renewed(text, "new")


def test_the_page_has_its_marks():
    assert renewed(document.DOCUMENT.read_text(), "new")


def test_a_part_that_does_not_exist_is_refused_with_those_that_do(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "burst,speed"])
    assert "unknown: speed; there are: idle, empty, burst" in capsys.readouterr().err


class LeftStage:
    """A stage that counts how often it was put away."""

    def __init__(self):
        self.left = 0

    def leave(self):
        self.left += 1


@pytest.mark.parametrize("error", [BenchError("no end"), KeyError("median")])
def test_a_part_that_fails_is_told_and_what_it_stood_on_is_put_away(error):
    stage, failed = LeftStage(), {}
    with told(stage, "burst", failed):
        raise error
    assert failed == {"burst": f"{type(error).__name__}: {error}"}
    assert stage.left == 1


def test_what_goes_well_leaves_the_stage_to_the_next_part():
    stage, failed = LeftStage(), {}
    with told(stage, "burst", failed):
        pass
    assert (failed, stage.left) == ({}, 0)


def test_whoever_interrupts_the_bench_is_not_taken_for_a_failing_part():
    stage, failed = LeftStage(), {}
    with pytest.raises(KeyboardInterrupt), told(stage, "burst", failed):
        raise KeyboardInterrupt
    assert not failed


def test_asked_rounds_count_for_whatever_is_repeated():
    scale = WHOLE.with_rounds(7)
    often = {scale.rounds, scale.burst_rounds, scale.average_rounds, scale.few_rounds}
    assert often | {*scale.results.values()} | {*scale.inputs.values()} == {7}
    assert scale.results.keys() == WHOLE.results.keys()
    assert scale.name == "whole, 7 rounds"
