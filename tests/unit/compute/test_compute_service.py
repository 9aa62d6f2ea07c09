"""The steps of a job work with what the books name, whatever a run says of itself."""

from dataclasses import replace
from pathlib import Path

import pytest

from node_agent.compute.desk import open_run_of, run_id_of
from node_agent.compute.ledger import ComputeJobId, JobRecord
from node_agent.compute.service import _require_as_asked
from node_agent.domain.run import Run
from node_agent.domain.task import DatabaseRequest
from node_agent.errors import RunClosed
from node_agent.store.journal import SqliteJournal

JOB = JobRecord(
    number=7,
    id=ComputeJobId("1" * 32),
    owner="0x",
    created_at=1.0,
    wish={"image": "trusted/image", "digest": f"sha256:{'a' * 64}", "labels": ["patients", "more"]},
)
RUN = Run(id=run_id_of(JOB), task=open_run_of(JOB).task, received_at=1.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"image": f"another/image@sha256:{'a' * 64}"},
        {"image": f"trusted/image@sha256:{'b' * 64}"},
        {"databases": (DatabaseRequest(label="patients"), DatabaseRequest(label="secret"))},
        {"databases": (DatabaseRequest(label="patients", query="SELECT 1"), DatabaseRequest(label="more"))},
    ],
)
def test_a_run_with_another_image_or_other_data_than_its_job_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(RunClosed, match="in the books"):
        _require_as_asked(replace(RUN, task=replace(RUN.task, **changed)), JOB)  # type: ignore[arg-type]


def test_the_run_of_a_job_is_as_asked_also_after_a_restart(quick_dir: Path) -> None:
    journal = SqliteJournal(quick_dir)
    journal.insert(RUN)
    (loaded,) = journal.load()
    journal.close()
    _require_as_asked(loaded, JOB)
