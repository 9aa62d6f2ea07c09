"""What the containers of jobs are given: folders, mounts, variables and commands of either contract."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node_agent.compute.jobcontracts import JobVantage6Contract, OceanContract
from node_agent.compute.ledger import ComputeJobId, JobRecord
from node_agent.compute.results import ResultStore
from node_agent.domain.assets import derived_did, short_did
from node_agent.domain.container import Mount
from node_agent.domain.database import Database, DatabaseType
from node_agent.domain.secret import Secret
from node_agent.errors import DatabaseMissing, NotAllowed, OutputTooLarge, RunFailed
from node_agent.stepports import Layout, Ports
from tests.doubles.core import make_run
from tests.unit.test_steps import Bench

DATA, MORE = derived_did("data"), derived_did("more")
ALGORITHM = derived_did("algorithm")
TOKEN = Secret("a token")
RUN = make_run(1)


def job(**wish: Any) -> JobRecord:
    facts = {"labels": ["patients"], "inputs": [DATA], "algorithm": ALGORITHM, "entrypoint": "python $ALGO"}
    return JobRecord(number=1, id=ComputeJobId("1" * 32), owner="0x", created_at=1.0, wish={**facts, **wish})


class Scene:
    """A job's contract with the folders of one agent."""

    def __init__(self, folder: Path) -> None:
        state_dir = folder / "state"
        state_dir.mkdir()
        self.folder = folder
        self.state_dir = state_dir
        self.ports: Ports = Bench(state_dir).ports
        self.results = ResultStore(state_dir)
        self.patients = folder / "patients.csv"
        self.patients.write_text("a,b\n")

    @property
    def private(self) -> Path:
        return self.state_dir / "runs" / f"{RUN.id:09d}" / "mount"

    def database(self, label: str = "patients", **facts: Any) -> Database:
        return Database(**{"label": label, "type": DatabaseType.CSV, "uri": str(self.patients), **facts})

    def contract(self, record: JobRecord, content: Mapping[str, Any] | None = None) -> OceanContract:
        return OceanContract(
            record,
            content=lambda: json.dumps(content or {}).encode(),
            results=self.results,
            document=lambda did: f"about {did}".encode(),
        )

    def laid_out(
        self, record: JobRecord, content: Mapping[str, Any] | None = None, *databases: Database
    ) -> Layout:
        return self.contract(record, content).lay_out(
            RUN, self.ports, databases or (self.database(),), token=TOKEN, open_to_all=False
        )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_data_sets_lie_under_their_did_and_can_only_be_read(scene: Scene) -> None:
    laid_out = scene.laid_out(job())
    place = f"/data/inputs/{short_did(DATA)}/0"
    assert Mount(str(scene.patients), place, read_only=True) in laid_out.mounts
    writable = [mount.target for mount in laid_out.mounts if not mount.read_only]
    assert writable == ["/data"]
    closed = {mount.target for mount in laid_out.mounts if mount.read_only}
    assert {"/data/inputs", "/data/ddos"} <= closed
    # the engine mounts files onto files
    assert (scene.private / "inputs" / short_did(DATA) / "0").read_bytes() == b""


def test_a_folder_is_shown_file_by_file_in_the_order_of_names(scene: Scene) -> None:
    scans = scene.folder / "scans"
    (scans / "inner").mkdir(parents=True)
    for name in ("b", "a", "c"):
        (scans / name).write_text(name)
    folder = scene.database(type=DatabaseType.FOLDER, uri=str(scans))
    laid_out = scene.laid_out(job(), {}, folder)
    sources = [mount.source for mount in laid_out.mounts if short_did(DATA) in mount.target]
    assert sources == [str(scans / name) for name in ("a", "b", "c")]


def test_a_data_set_asked_for_twice_is_mounted_once(scene: Scene) -> None:
    record = job(labels=["patients", "patients"], inputs=[DATA, DATA])
    targets = [mount.target for mount in scene.laid_out(record).mounts]
    assert len(targets) == len(set(targets))


def test_variables_name_data_sets_and_algorithm_without_the_prefix(scene: Scene) -> None:
    record = job(labels=["patients", "visits"], inputs=[DATA, MORE])
    laid_out = scene.laid_out(record, {}, scene.database(), scene.database("visits"))
    assert json.loads(laid_out.environment["DIDS"]) == [short_did(DATA), short_did(MORE)]
    assert laid_out.environment["TRANSFORMATION_DID"] == short_did(ALGORITHM)
    assert "TOKEN_FILE" not in laid_out.environment


def test_an_algorithm_that_came_with_its_job_is_called_raw(scene: Scene) -> None:
    assert scene.laid_out(job(algorithm="")).environment["TRANSFORMATION_DID"] == "raw"


def test_parameters_are_a_file_and_the_code_can_be_executed(scene: Scene) -> None:
    laid_out = scene.laid_out(job(), {"input": {"a": 1}, "code": "print(1)"})
    assert json.loads((scene.private / "inputs" / "algoCustomData.json").read_bytes()) == {"a": 1}
    code = scene.private / "transformations" / "algorithm"
    assert code.read_text() == "print(1)"
    assert code.stat().st_mode & 0o777 == 0o755
    assert laid_out.command == ("python", "/data/transformations/algorithm")


def test_without_code_there_is_no_place_for_it(scene: Scene) -> None:
    laid_out = scene.laid_out(job(entrypoint=""))
    assert laid_out.command is None
    assert "/data/transformations" not in [mount.target for mount in laid_out.mounts]
    assert not (scene.private / "transformations").exists()


def test_no_shell_reads_an_entrypoint(scene: Scene) -> None:
    laid_out = scene.laid_out(job(entrypoint="sh -c 'echo $HOME; ls' ; rm"))
    assert laid_out.command == ("sh", "-c", "echo $HOME; ls", ";", "rm")
    with pytest.raises(RunFailed, match="entrypoint"):
        scene.laid_out(job(entrypoint="python 'unfinished"))


def test_the_catalogue_s_code_is_what_the_data_sets_trust_or_nothing(scene: Scene) -> None:
    code = scene.folder / "algorithm.py"
    code.write_text("print(1)")
    checksum = "3dbe89e84ff366f1ddeca8d1a1aef5d7fa8ec6fa8da0caacf5d9bdfdf5e0e4a5"
    with pytest.raises(NotAllowed, match="changed"):
        scene.laid_out(job(code_file=str(code), files_checksum=checksum))
    code.unlink()
    with pytest.raises(NotAllowed, match="any more"):
        scene.laid_out(job(code_file=str(code), files_checksum=checksum))


def test_data_that_are_gone_are_missing_and_not_a_failed_start(scene: Scene) -> None:
    scene.patients.unlink()
    for contract in (scene.contract(job()), JobVantage6Contract(job())):
        with pytest.raises(DatabaseMissing):
            contract.lay_out(RUN, scene.ports, (scene.database(),), token=TOKEN, open_to_all=False)


def test_a_folder_of_too_many_files_is_refused(scene: Scene) -> None:
    scans = scene.folder / "scans"
    scans.mkdir()
    for number in range(257):
        (scans / str(number)).touch()
    with pytest.raises(DatabaseMissing, match="256"):
        scene.laid_out(job(), {}, scene.database(type=DatabaseType.FOLDER, uri=str(scans)))


def test_an_image_of_vantage6_may_get_the_catalogue_s_entrypoint(scene: Scene) -> None:
    for entrypoint, command in (("", None), ("python -m average", ("python", "-m", "average"))):
        scene.ports.folders.remove(RUN.id)
        scene.ports.folders.store_input(RUN.id, [b"{}"])
        laid_out = JobVantage6Contract(job(entrypoint=entrypoint)).lay_out(
            RUN, scene.ports, (scene.database(),), token=TOKEN, open_to_all=False
        )
        assert laid_out.command == command
        assert "INPUT_FILE" in laid_out.environment


# --- what was left ------------------------------------------------------------------------------------------------


def collected(scene: Scene, *, limit: int = 1000) -> None:
    settings = replace(scene.ports.settings, output_size=limit)
    scene.contract(job()).capture(RUN, replace(scene.ports, settings=settings))
    scene.results.publish(job().id, result=None, log=None)


def test_a_link_in_place_of_the_outputs_is_not_followed(scene: Scene) -> None:
    scene.laid_out(job())
    (scene.private / "outputs").rmdir()
    (scene.private / "outputs").symlink_to(scene.folder)
    collected(scene)
    assert scene.results.files(job().id) == ()


def test_links_in_the_outputs_are_left_out(scene: Scene) -> None:
    scene.laid_out(job())
    outputs = scene.private / "outputs"
    (outputs / "inner").mkdir()
    (outputs / "inner" / "good").write_text("good")
    (outputs / "inner" / "bad").symlink_to("/etc/passwd")
    (outputs / "worse").symlink_to(scene.patients)
    (outputs / "good").write_text("good")
    contract = scene.contract(job())
    assert not contract.has_result(RUN, scene.ports)
    contract.capture(RUN, scene.ports)
    assert contract.has_result(RUN, scene.ports)
    collected(scene)
    assert [entry.filename for entry in scene.results.files(job().id)] == ["good", "outputs.tar"]


def test_outputs_of_more_than_the_limit_are_refused(scene: Scene) -> None:
    scene.laid_out(job())
    (scene.private / "outputs" / "large").write_bytes(b"1" * 1001)
    with pytest.raises(OutputTooLarge):
        collected(scene)


def test_outputs_collected_twice_are_published_once(scene: Scene) -> None:
    scene.laid_out(job())
    (scene.private / "outputs" / "a").write_text("a")
    for _ in range(2):
        collected(scene)
    assert [entry.filename for entry in scene.results.files(job().id)] == ["a"]
