"""Which databases this node has, and which of them a task gets.

Owns the lookup by label. Knows nothing of what is inside a database, nor of containers.
"""

from collections.abc import Iterable

from node_agent.databases.access import Agent, groups_for
from node_agent.domain.database import Database
from node_agent.domain.task import DatabaseRequest
from node_agent.errors import ConfigError, DatabaseMissing


class Catalog:
    """The configured databases by label; a label is matched exactly."""

    def __init__(self, databases: Iterable[Database], *, agent: Agent, groups: Iterable[int] = ()) -> None:
        """Take in the databases; *groups* are those that every container joins, whatever it asks for."""
        self._agent = agent
        self._groups = frozenset(groups)
        self._by_label: dict[str, Database] = {}
        for database in databases:
            self._add(database)

    def _add(self, database: Database) -> None:
        # labels become names of variables in upper case, where two spellings would be one
        for label in self._by_label:
            if label.upper() == database.label.upper():
                raise ConfigError(
                    f"Two databases have the label '{database.label}' (upper and lower case count as one).",
                    hint="Give each entry of `databases` a label of its own.",
                )
        self._by_label[database.label] = database

    @property
    def databases(self) -> tuple[Database, ...]:
        """Give every configured database, in the order of the configuration."""
        return tuple(self._by_label.values())

    def choose(self, requests: Iterable[DatabaseRequest]) -> tuple[Database, ...]:
        """Find the databases a task asks for, each once, in the order asked. Raises DatabaseMissing."""
        labels = dict.fromkeys(request.label for request in requests)
        return tuple(self._find(label) for label in labels)

    def groups(self, databases: Iterable[Database]) -> tuple[int, ...]:
        """List the groups that a container joins, which let it read exactly these databases."""
        return tuple(sorted(self._groups.union(groups_for(databases, agent=self._agent))))

    def _find(self, label: str) -> Database:
        if label not in self._by_label:
            raise DatabaseMissing(
                f"This node has no database with the label '{label}'.", hint=self._known_labels()
            )
        return self._by_label[label]

    def _known_labels(self) -> str:
        if not self._by_label:
            return "It has no database at all."
        known = ", ".join(self._by_label)
        return f"Its databases: {known}. Ask for one of these labels; upper and lower case matter."
