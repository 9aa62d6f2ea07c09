"""However many runs a server lists, a bounded number is taken in, and an honest run among them."""

from pathlib import Path

from structlog.testing import capture_logs

from node_agent.quota import MOST_OF_ALL, MOST_OF_ONE
from tests.doubles.core import make_open_run, make_task
from tests.unit.test_agent import ADMITTED, Bench

HONEST = 10**6


def test_twenty_thousand_runs_of_one_researcher_keep_no_honest_run_from_its_turn(quick_dir: Path) -> None:
    bench = Bench(quick_dir, concurrent_runs=2)
    invented = [make_open_run(n, task=make_task(n, init_user_id=7)) for n in range(1, 20_001)]
    honest = make_open_run(HONEST, task=make_task(HONEST, init_user_id=8))
    with capture_logs() as logged:
        bench.list_(*invented, honest)
    assert len(bench.runs) == MOST_OF_ONE + 1
    assert bench.step_of(HONEST) == "admit"
    (said,) = [entry for entry in logged if entry["event"] == "runs_left_at_server"]
    assert said["runs"] == 20_000 - MOST_OF_ONE
    bench.journal.close()


def test_many_researchers_are_bounded_together_and_the_rest_is_taken_in_later(quick_dir: Path) -> None:
    bench = Bench(quick_dir, concurrent_runs=1)
    invented = [make_open_run(n, task=make_task(n, init_user_id=n)) for n in range(1, MOST_OF_ALL + 3)]
    with capture_logs():
        bench.list_(*invented)
        assert len(bench.runs) == MOST_OF_ALL
        bench.succeed(1, ADMITTED)
        bench.list_(*invented)
    assert len(bench.runs) == MOST_OF_ALL + 1
    bench.journal.close()
