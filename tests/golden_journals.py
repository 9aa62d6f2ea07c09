"""Writes the golden journal of the newest version into tests/unit/golden: `.venv/bin/python -m tests.golden_journals`.

Whoever adds a step to `store/schema.py` runs this once and commits what it made; files of versions that were released are
never written again. Beside each journal lies what is in it, as a reader of today has to find it.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

from node_agent.domain.keeping import PulledImage
from node_agent.domain.lifecycle import EDGES
from node_agent.domain.mark import Mark
from node_agent.domain.run import BlobId, ContainerId, Outcome, Run, RunId, State, Status
from node_agent.domain.task import DatabaseRequest, JobId, OrganizationId, Task, TaskId
from node_agent.store.journal import FILE_NAME, SqliteJournal, read_images
from node_agent.store.schema import MIGRATIONS

FOLDER = Path(__file__).parent / "unit" / "golden"
PLAIN_TASK = Task(id=TaskId(1), job_id=JobId(7), image="registry.example/average:1", collaboration_id=1)
TASK = replace(
    PLAIN_TASK,
    parent_id=TaskId(3),
    init_org_id=OrganizationId(9),
    init_user_id=8,
    init_user_name="ada",
    study_id=6,
    store_id=5,
    databases=(
        DatabaseRequest(
            label="default",
            query="SELECT 'ü'",
            sheet_name="Blatt 1",
            preprocessing=({"function": "select_columns", "parameters": {"columns": ["a"]}},),
            arguments={"x": [1, 2]},
        ),
        DatabaseRequest(label="other"),
    ),
)
EVERYTHING: Mapping[str, Any] = {
    "state": State.CAPTURED,
    "entered": Mark("boot", 1.25),
    "ending": Outcome.KILLED,
    "outcome": Outcome.KILLED,
    "reason": "because",
    "fault": "faulty",
    "input_blob": BlobId("input"),
    "input_digest": "b" * 64,
    "result_blob": BlobId("result"),
    "announced": Status.ACTIVE,
    "claimed_at": 2.5,
    "digest": "sha256:" + "d" * 64,
    "image_id": "sha256:" + "e" * 64,
    "container": ContainerId("c" * 64),
    "token_hash": "f" * 64,
    "started_at": 3.5,
    "exit_code": 137,
    "out_of_memory": True,
    "has_subtasks": True,
    "finished_at": 4.5,
    "refusal": "The run is closed.",
}
"""A value for each field of a run that is not there from the beginning."""
IMAGE = PulledImage(
    image_id="sha256:" + "e" * 64,
    reference="registry.example/average:1",
    digest="sha256:" + "d" * 64,
    pulled_at=1.5,
    used_at=2.5,
)


def golden(version: int) -> Path:
    """Say where the journal of a version lies; what is in it lies beside it."""
    return FOLDER / f"journal-v{version}.sqlite"


def plain(value: Any) -> Any:
    """Write a value the way it stands in the description of a journal."""
    return json.loads(json.dumps(asdict(value), default=str))


def runs() -> Iterator[Run]:
    """Give runs with every field, in every state, and with every outcome."""
    for field in fields(Run):
        if field.default is not MISSING and field.name not in EVERYTHING:
            raise LookupError(f"EVERYTHING has no value for the field '{field.name}' of a run: give it one.")
    yield Run(id=RunId(1), task=TASK, received_at=1.5, **{**EVERYTHING, "outcome": None})
    yield Run(id=RunId(2), task=TASK, received_at=1.5, **{**EVERYTHING, "state": State.REPORTED})
    for state in State:
        outcome = Outcome.COMPLETED if state >= State.FINISHED else None
        yield Run(
            id=RunId(10 + state), task=PLAIN_TASK, received_at=float(state), state=state, outcome=outcome
        )
    for number, outcome in enumerate(Outcome, start=30):
        yield Run(
            id=RunId(number),
            task=PLAIN_TASK,
            received_at=1.5,
            state=State.REMOVED,
            outcome=outcome,
            reason="why",
        )


def walk(journal: SqliteJournal) -> Run:
    """Record a run that goes the whole way, and give how it ended up."""
    run = Run(id=RunId(50), task=PLAIN_TASK, received_at=1.5)
    journal.insert(run)
    while EDGES[run.state]:
        outcome = Outcome.COMPLETED if run.state >= State.CAPTURED else None
        after = replace(run, state=min(EDGES[run.state]), outcome=outcome)
        journal.update(run, after, at=float(after.state))
        run = after
    return run


def write(path: Path) -> None:
    """Write a journal with today's code, and beside it what is in it."""
    with tempfile.TemporaryDirectory() as folder:
        journal = SqliteJournal(Path(folder))
        written = list(runs())
        for run in written:
            journal.insert(run)
        written.append(walk(journal))
        journal.note_image(IMAGE)
        journal.close()
        content = (Path(folder) / FILE_NAME).read_bytes()
        images = read_images(Path(folder))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    described = {"runs": [plain(run) for run in written], "images": [plain(image) for image in images]}
    path.with_suffix(".json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    newest = golden(len(MIGRATIONS))
    if newest.exists() and "--again" not in sys.argv:
        sys.exit(f"{newest} is there. While its version is not released, write it anew with --again.")
    write(newest)
    print(newest)
