"""What the containers of jobs find, in either contract, and where their outputs go.

Owns putting together what the books say of a job and what lies on this machine. Must not know requests or an engine.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from node_agent.compute.ledger import JobRecord
from node_agent.compute.offer import MAX_CODE
from node_agent.compute.results import ResultStore
from node_agent.contracts import Vantage6Contract, entrance_names
from node_agent.domain import contract, oceancontract
from node_agent.domain.database import Database
from node_agent.domain.oceancontract import MountedDataSet
from node_agent.domain.run import Run
from node_agent.domain.secret import Secret
from node_agent.errors import DatabaseMissing, NotAllowed, StartFailed
from node_agent.stepports import Layout, Ports


class OceanContract:
    """What images made for compute-to-data find: `/data` with inputs, code and outputs."""

    def __init__(
        self,
        job: JobRecord,
        *,
        content: Callable[[], bytes],
        results: ResultStore,
        document: Callable[[str], bytes | None],
    ) -> None:
        self._job = job
        self._content = content
        self._results = results
        self._document = document

    def lay_out(
        self, run: Run, ports: Ports, databases: tuple[Database, ...], *, token: Secret, open_to_all: bool
    ) -> Layout:
        """Make the run's folder ready and say what its container is given. Raises DiskFull, RunFailed."""
        del token
        wish = self._job.wish
        data_sets = self._mounted(databases)
        content = json.loads(self._content() or b"{}")
        files = oceancontract.files(
            data_sets,
            custom=content.get("input", {}),
            code=self._code(content),
            documents=self._documents(),
        )
        private = ports.folders.furnish(
            run.id,
            files=files,
            executable=(oceancontract.CODE,),
            writable=oceancontract.WRITABLE,
            open_to_all=open_to_all,
        )
        inside = entrance_names(databases, ports)
        return Layout(
            mounts=oceancontract.mounts(private.path, data_sets, names=files),
            user=private.user,
            environment={
                **ports.settings.extras.environment,
                **contract.way_out(egress_port=ports.settings.egress_port, inside=inside),
                **oceancontract.variables(data_sets=wish["inputs"], algorithm=wish["algorithm"]),
            },
            command=_command(self._job),
        )

    def capture(self, run: Run, ports: Ports) -> None:
        """Take over the folder of outputs. Raises OutputTooLarge, DiskFull."""
        with ports.folders.opened_outputs(run.id, oceancontract.OUTPUTS) as outputs:
            self._results.collect(self._job.id, outputs=outputs, limit=ports.settings.output_size)

    def has_result(self, run: Run, ports: Ports) -> bool:
        """Tell whether there was any file among the outputs."""
        del run, ports
        return self._results.has_outputs(self._job.id)

    def _mounted(self, databases: Sequence[Database]) -> tuple[MountedDataSet, ...]:
        by_label = {database.label: database for database in databases}
        wish = self._job.wish
        named = dict(zip(wish["inputs"], wish["labels"], strict=True))
        return tuple(MountedDataSet(did, _files_of(by_label[label])) for did, label in named.items())

    def _code(self, content: dict[str, object]) -> bytes | None:
        code = content.get("code")
        if isinstance(code, str):
            return code.encode(errors="replace")
        place = self._job.wish.get("code_file")
        return None if place is None else _approved(Path(place), self._job.wish["files_checksum"])

    def _documents(self) -> dict[str, bytes]:
        named = [*self._job.wish["inputs"], self._job.wish["algorithm"]]
        found = {did: self._document(did) for did in named if did}
        return {did: content for did, content in found.items() if content is not None}


class JobVantage6Contract(Vantage6Contract):
    """The contract of vantage6 for a job: the entrypoint may be the catalogue's."""

    def __init__(self, job: JobRecord) -> None:
        self._job = job

    def lay_out(
        self, run: Run, ports: Ports, databases: tuple[Database, ...], *, token: Secret, open_to_all: bool
    ) -> Layout:
        """Make the run's folders ready and say what its container is given. Raises DiskFull, RunFailed."""
        for database in databases:
            if database.path is not None:
                _check_is_there(database.path)
        laid_out = super().lay_out(run, ports, databases, token=token, open_to_all=open_to_all)
        return Layout(
            mounts=laid_out.mounts,
            environment=laid_out.environment,
            user=laid_out.user,
            gateway_names=laid_out.gateway_names,
            command=_command(self._job),
        )


def _command(job: JobRecord) -> tuple[str, ...] | None:
    try:
        return oceancontract.command(job.wish["entrypoint"])
    except ValueError as error:
        raise StartFailed(f"The algorithm's entrypoint cannot be taken apart: {error}.") from error


def _approved(code: Path, checksum: str) -> bytes:
    """Read the code of a catalogue's algorithm, if it is still what the data sets trust."""
    try:
        with code.open("rb") as file:
            content = file.read(MAX_CODE + 1)
    except OSError as error:
        raise NotAllowed("The algorithm's code is not on this node any more.") from error
    if len(content) > MAX_CODE or hashlib.sha256(content).hexdigest() != checksum:
        raise NotAllowed("The algorithm's code has changed since this node took it into its catalogue.")
    return content


def _files_of(database: Database) -> tuple[Path, ...]:
    """List the files of a data set, a folder's in the order of their names."""
    place = database.path
    if place is None:
        raise DatabaseMissing("A data set of this job has no files.")
    _check_is_there(place)
    if not place.is_dir():
        return (place,)
    found = sorted(entry for entry in place.iterdir() if entry.is_file())
    if len(found) > oceancontract.MAX_FILES:
        raise DatabaseMissing(
            f"A data set of this job has more than {oceancontract.MAX_FILES} files; this node mounts no more."
        )
    return tuple(found)


def _check_is_there(place: Path) -> None:
    if not place.exists():
        raise DatabaseMissing("A data set of this job is not on this node any more.")
