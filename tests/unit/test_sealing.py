"""Results of encrypted collaborations: refused early when nobody could read them, and sealed before they are owed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent.domain.run import BlobId, Outcome, Run, RunId, State, Status
from node_agent.domain.secret import Secret
from node_agent.domain.task import OrganizationId
from node_agent.errors import (
    AccessDenied,
    DiskFull,
    KeyChanged,
    KeyMissing,
    NodeAgentError,
    ServerUnreachable,
)
from tests.doubles.core import SealBook, make_run, make_task
from tests.unit.test_steps import RUN, Bench

READER = OrganizationId(3)
BLOB = BlobId("input")
TOKEN = Secret("token")


class SealedBench(Bench):
    """The bench of an encrypted collaboration."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self.seal = SealBook()
        self.ports = replace(self.ports, seal=self.seal)

    def ended(self, **changes: Any) -> Run:
        """Give a run whose algorithm wrote 42."""
        run = self.running(**changes)
        self.engine.finish(RUN, output=b"42")
        return self.go("observe", run)

    def found(self) -> dict[str, bytes]:
        """Give what lies in the run's folder as its result."""
        folder = self.ports.folders.prepare(RUN, make_run(1).task.job, token=TOKEN, open_to_all=False).private
        return {file.name: file.read_bytes() for file in folder.parent.glob("result*")}


@pytest.fixture
def bench(quick_dir: Path) -> SealedBench:
    return SealedBench(quick_dir)


# --- before a run is taken ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [OrganizationId(4), None])
def test_a_run_whose_result_nobody_could_read_is_refused_before_it_is_taken(
    bench: SealedBench, reader: OrganizationId | None
) -> None:
    with pytest.raises(KeyMissing):
        bench.do("admit", make_run(1, task=make_task(1, init_org_id=reader)))
    assert bench.server.entries[RUN].said == []


def test_a_run_is_not_taken_while_the_key_cannot_be_asked_for(bench: SealedBench) -> None:
    bench.seal.faults.plan("reader_key", ServerUnreachable("away"))
    with pytest.raises(ServerUnreachable):
        bench.do("admit", make_run(1))
    assert bench.go("admit", make_run(1)).state is State.ADMITTED


# --- when the algorithm has ended -----------------------------------------------------------------------------


def test_what_is_owed_lies_sealed_and_not_plain(bench: SealedBench) -> None:
    run = bench.go("filter", bench.ended())
    assert (run.outcome, run.reason) == (Outcome.COMPLETED, "")
    assert bench.found() == {"result.sealed": b"sealed for key-3: 42"}
    bench.go("report", run)
    (report,) = bench.server.entries[RUN].accepted
    assert (report.result, report.is_sealed) == (b"sealed for key-3: 42", True)


@pytest.mark.parametrize("away", [ServerUnreachable("away"), AccessDenied("the key was withdrawn")])
def test_without_the_server_it_is_sealed_for_the_key_that_was_learned_before(
    bench: SealedBench, away: NodeAgentError
) -> None:
    run = bench.ended()
    bench.seal.faults.plan("reader_key", away)
    assert bench.go("filter", run).state is State.FINISHED
    assert bench.found() == {"result.sealed": b"sealed for key-3: 42"}


def test_a_key_that_changed_meanwhile_is_the_one_that_counts(bench: SealedBench) -> None:
    run = bench.ended()
    bench.seal.keys[READER] = "newer"
    bench.go("filter", run)
    assert bench.found() == {"result.sealed": b"sealed for newer: 42"}


def test_a_key_that_was_withdrawn_meanwhile_is_not_used(bench: SealedBench) -> None:
    run = bench.ended()
    del bench.seal.keys[READER]
    with pytest.raises(KeyMissing):
        bench.do("filter", run)
    assert "result.sealed" not in bench.found()


def test_filtering_again_seals_nothing_again_and_ends_the_same(bench: SealedBench) -> None:
    run = bench.ended()
    first = bench.go("filter", run)
    bench.seal.keys[READER] = "newer"
    assert bench.go("filter", run) == first
    assert bench.found() == {"result.sealed": b"sealed for key-3: 42"}


def test_an_empty_result_is_left_as_it_is_and_still_said_to_be_empty(bench: SealedBench) -> None:
    run = bench.running()
    bench.engine.finish(RUN, output=b"")
    run = bench.go("observe", run)
    for _ in range(2):
        assert "wrote no output" in bench.go("filter", run).reason
    assert bench.found() == {"result": b""}


def test_a_result_for_the_blob_store_lies_as_the_store_will_have_it(bench: SealedBench) -> None:
    bench.server.blobs[BLOB] = b"{}"
    run = bench.go("filter", bench.ended(input_blob=BLOB))
    assert bench.found() == {"result.sealed": b"blob for key-3: 42"}
    bench.do("report", run)
    assert list(bench.server.blobs.values()) == [b"{}", b"blob for key-3: 42"]


def test_on_a_full_disk_the_result_stays_plain_and_goes_on_its_way(bench: SealedBench) -> None:
    run = bench.ended()
    bench.seal.faults.plan("sealed", DiskFull("The disk is full."))
    with capture_logs() as lines:
        run = bench.go("filter", run)
    assert [line["event"] for line in lines] == ["result_left_plain"]
    bench.go("report", run)
    (report,) = bench.server.entries[RUN].accepted
    assert (report.result, report.is_sealed) == (b"42", False)


# --- what an older agent left ---------------------------------------------------------------------------------


@pytest.fixture
def older(quick_dir: Path) -> tuple[SealedBench, Run]:
    """A run whose algorithm ended under an agent that kept no keys."""
    run = Bench(quick_dir).captured(output=b"42")
    bench = SealedBench(quick_dir)
    return bench, run


def test_a_result_that_is_owed_plain_is_still_reported(older: tuple[SealedBench, Run]) -> None:
    bench, run = older
    run = replace(run, state=State.FINISHED, outcome=Outcome.COMPLETED)
    bench.go("report", run)
    (report,) = bench.server.entries[RunId(1)].accepted
    assert (report.status, report.result, report.is_sealed) == (Status.COMPLETED, b"42", False)


def test_a_result_whose_readers_key_was_never_kept_waits_for_the_server(
    older: tuple[SealedBench, Run],
) -> None:
    bench, run = older
    bench.seal.faults.plan("reader_key", ServerUnreachable("away"))
    with pytest.raises(ServerUnreachable):
        bench.do("filter", run)
    bench.go("filter", run)
    assert bench.found() == {"result.sealed": b"sealed for key-3: 42"}


# --- when the reader's key was exchanged ----------------------------------------------------------------------


def test_a_result_whose_readers_key_was_exchanged_is_owed_and_not_sealed_for_the_new_key(
    bench: SealedBench,
) -> None:
    run = bench.ended()
    bench.seal.faults.plan("reader_key", KeyChanged("another key"))
    run = bench.go("filter", run)
    assert (run.state, run.outcome) == (State.FINISHED, Outcome.COMPLETED)
    assert bench.found() == {"result": b"42"}


def test_a_run_is_not_taken_while_the_key_of_its_reader_is_in_doubt(bench: SealedBench) -> None:
    bench.seal.faults.plan("reader_key", KeyChanged("another key"))
    with pytest.raises(KeyChanged):
        bench.do("admit", make_run(1))
    assert bench.server.entries[RUN].said == []
