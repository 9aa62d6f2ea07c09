"""The steps, as far as they give algorithms more than the contract, and researchers less than the whole log."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from node_agent.domain.container import Extras
from node_agent.domain.contract import encode
from node_agent.domain.database import Database, DatabaseType
from node_agent.domain.masking import mask_for
from node_agent.domain.run import State
from node_agent.domain.runcontext import LARGEST_INPUT
from node_agent.domain.runlogs import LogSharing
from node_agent.domain.secret import Secret
from node_agent.domain.task import DatabaseRequest
from node_agent.errors import EngineUnreachable, StartFailed
from tests.doubles.core import DIGEST, IMAGE, ConfiguredDatabases, data_mount, make_run, make_task
from tests.unit.test_steps import RUN, Bench

INPUT = b'{"method": "average", "kwargs": {"column": "age"}}'


@pytest.fixture
def bench(quick_dir: Path) -> Bench:
    made = Bench(quick_dir)
    made.ports.folders.remove(RUN)
    made.ports.folders.store_input(RUN, [INPUT])
    return made


def variables(bench: Bench) -> dict[str, str]:
    return dict(bench.engine.box_of(RUN).spec.environment)


# --- extras ---------------------------------------------------------------------------------------------------


def test_the_owners_variables_and_hosts_reach_the_container_in_the_usual_form(bench: Bench) -> None:
    bench.settle(extras=Extras(environment={"THRESHOLD": "5"}, hosts={"db.example.org": "192.0.2.7"}))
    bench.running()
    assert variables(bench)["THRESHOLD"] == encode("5")
    assert bench.engine.box_of(RUN).spec.hosts == {"db.example.org": "192.0.2.7"}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [(IMAGE, True), (f"{IMAGE}@{DIGEST}", True), (f"{IMAGE}@sha256:{'b' * 64}", False), ("other/*", False)],
)
def test_gpus_are_given_by_name_and_by_what_the_image_was_pinned_to(
    bench: Bench, pattern: str, *, expected: bool
) -> None:
    bench.settle(extras=Extras(gpu=(pattern,)))
    bench.running()
    assert bench.engine.box_of(RUN).spec.gpus is expected


# --- the description of a run ---------------------------------------------------------------------------------


def context_of(bench: Bench) -> Path:
    return data_mount(bench.engine.box_of(RUN).spec) / "task-000000001" / "run_context.json"


def test_a_run_is_described_beside_its_input_and_told_where(bench: Bench) -> None:
    bench.settle(extras=Extras(run_context=True), node_id=4)
    bench.running()
    assert variables(bench)["RUN_CONTEXT_FILE"] == "/mnt/data/task-000000001/run_context.json"
    described = json.loads(context_of(bench).read_bytes())
    assert described["entrypoint"] == {"name": "average"}
    assert described["executor"]["id"] == 4


def test_no_run_is_described_unless_the_owner_wants_it(bench: Bench) -> None:
    bench.running()
    assert "RUN_CONTEXT_FILE" not in variables(bench)
    assert not context_of(bench).exists()


def test_a_description_survives_a_container_that_could_not_be_made_at_first(bench: Bench) -> None:
    bench.settle(extras=Extras(run_context=True))
    run = bench.go("pull", bench.go("admit", make_run(1)))
    bench.engine.faults.plan("ensure_container", EngineUnreachable("It is away."))
    with pytest.raises(EngineUnreachable):
        bench.do("create", run)
    bench.go("create", run)
    assert json.loads(context_of(bench).read_bytes())["arguments"]["named"] == {"column": "age"}


def test_an_input_too_large_to_be_described_ends_the_run(bench: Bench) -> None:
    bench.settle(extras=Extras(run_context=True))
    bench.ports.folders.remove(RUN)
    bench.ports.folders.store_input(RUN, [b" " * (LARGEST_INPUT + 1)])
    run = make_run(1, state=State.PULLED, image_id="image-1")
    with pytest.raises(StartFailed, match="too large"):
        bench.do("create", run)


def test_a_database_that_is_no_file_cannot_be_described(bench: Bench) -> None:
    bench.settle(extras=Extras(run_context=True))
    service = Database(label="study", type=DatabaseType.SPARQL, uri="https://h.example.org/q")
    bench.ports = replace(bench.ports, databases=ConfiguredDatabases(service))
    asking = make_task(1, databases=(DatabaseRequest(label="study"),))
    with pytest.raises(StartFailed, match="'study' is none"):
        bench.do("create", make_run(1, state=State.PULLED, image_id="image-1", task=asking))


# --- logs -----------------------------------------------------------------------------------------------------


def reported(bench: Bench, sharing: LogSharing, *, exit_code: int) -> str:
    bench.settle(log_sharing=sharing, log_size=10_000)
    run = bench.captured(exit_code=exit_code, log=b"what patients said\n")
    bench.go("report", bench.go("filter", run))
    return bench.server.entries[RUN].accepted[0].log


def test_a_log_that_is_not_shared_leaves_the_nodes_own_words(bench: Bench) -> None:
    log = reported(bench, LogSharing.OFF, exit_code=3)
    assert "patients" not in log
    assert log == (
        "[node] The algorithm ended with exit code 3.\n"
        "[node] This node does not share the logs of algorithms.\n"
    )


@pytest.mark.parametrize(("exit_code", "shared"), [(0, False), (1, True)])
def test_a_log_shared_on_errors_is_shared_of_what_failed_only(
    bench: Bench, exit_code: int, *, shared: bool
) -> None:
    log = reported(bench, LogSharing.ERRORS, exit_code=exit_code)
    assert ("patients" in log) is shared
    assert ("only when it fails" in log) is not shared


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_log_that_is_shared_is_shared_always(bench: Bench, exit_code: int) -> None:
    assert "patients" in reported(bench, LogSharing.FULL, exit_code=exit_code)


def test_a_secret_reaches_neither_the_researcher_nor_this_disk(bench: Bench, quick_dir: Path) -> None:
    bench.settle(log_mask=mask_for([Secret("hunter2")], ()), log_size=10_000)
    run = bench.captured(log=b"password=hunter2\n")
    assert not [path for path in quick_dir.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    bench.go("report", bench.go("filter", run))
    assert bench.server.entries[RUN].accepted[0].log == "password=***\n"
