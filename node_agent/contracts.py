"""The container contract of vantage6, done: folders, mounts and variables of one run.

Names and shapes are domain/contract.py's; here they are put together from what the owner configured. Must not know an
engine.
"""

from node_agent.domain import contract
from node_agent.domain.database import Database
from node_agent.domain.run import Run
from node_agent.domain.runcontext import LARGEST_INPUT, input_too_large, run_context
from node_agent.domain.secret import Secret
from node_agent.domain.service import seen_by_algorithms
from node_agent.stepports import Layout, Ports


class Vantage6Contract:
    """What images made for vantage6 find: `/mnt/data` with input, output and token, and encoded variables."""

    def lay_out(
        self, run: Run, ports: Ports, databases: tuple[Database, ...], *, token: Secret, open_to_all: bool
    ) -> Layout:
        """Make the run's folders ready and say what its container is given. Raises DiskFull, RunFailed."""
        seen = tuple(seen_by_algorithms(database, ports.settings.entrances) for database in databases)
        _describe(run, ports, seen)
        folders = ports.folders.prepare(run.id, run.task.job, token=token, open_to_all=open_to_all)
        inside = entrance_names(seen, ports)
        variables = contract.environment(
            run_id=run.id,
            requests=run.task.databases,
            databases=seen,
            proxy_port=ports.settings.proxy_port,
        )
        outside = contract.way_out(egress_port=ports.settings.egress_port, inside=inside)
        return Layout(
            mounts=contract.mounts(folders=folders, databases=seen),
            environment=variables | _extra_variables(run, ports) | outside,
            user=folders.user,
            gateway_names=inside,
        )

    def capture(self, run: Run, ports: Ports) -> None:
        """Take over the one output file. Raises OutputTooLarge, DiskFull."""
        ports.folders.capture_output(run.id, limit=ports.settings.output_size)

    def has_result(self, run: Run, ports: Ports) -> bool:
        """Tell whether the output had anything in it."""
        # only what is not empty is ever sealed
        result = ports.folders.sealed_path(run.id) or ports.folders.result_path(run.id)
        return result is not None and result.stat().st_size > 0


def entrance_names(databases: tuple[Database, ...], ports: Ports) -> tuple[str, ...]:
    """Give the names under which a container finds the database servers it asked for."""
    found = (ports.settings.entrances.get(database.label) for database in databases)
    return tuple(dict.fromkeys(entrance.host for entrance in found if entrance is not None))


def _describe(run: Run, ports: Ports, databases: tuple[Database, ...]) -> None:
    """Make the run's description, where the owner wants one; the folders take it over with the input."""
    if not ports.settings.extras.run_context:
        return
    content = ports.folders.read_input(run.id, limit=LARGEST_INPUT)
    if content is None and ports.folders.has_context(run.id):
        return
    if content is None:
        raise input_too_large()
    described = run_context(
        run,
        content,
        databases=databases,
        node_id=ports.settings.node_id,
        proxy_port=ports.settings.proxy_port,
    )
    ports.folders.store_context(run.id, described)


def _extra_variables(run: Run, ports: Ports) -> dict[str, str]:
    extras = ports.settings.extras
    # Readers of the description expect its path as it is.
    described = {"RUN_CONTEXT_FILE": contract.run_context_path(run.id)} if extras.run_context else {}
    return contract.encoded(extras.environment) | described
