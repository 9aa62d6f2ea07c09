"""The databases a data owner configured, and what a container gets of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class DatabaseType(StrEnum):
    """How an algorithm reads a database."""

    CSV = "csv"
    EXCEL = "excel"
    PARQUET = "parquet"
    SQLITE = "sqlite"
    FOLDER = "folder"
    SQL = "sql"
    SPARQL = "sparql"
    OMOP = "omop"
    OTHER = "other"


FILE_TYPES = frozenset({DatabaseType.CSV, DatabaseType.EXCEL, DatabaseType.PARQUET, DatabaseType.SQLITE})
PATH_TYPES = FILE_TYPES | {DatabaseType.FOLDER}
"""Types whose URI is a place in the file system and is mounted; `other` is mounted when its URI is an absolute path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """One configured source."""

    label: str
    type: DatabaseType
    uri: str = field(repr=False)  # a service URI may hold a password
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def path(self) -> Path | None:
        """Give the file or folder behind the URI; None for a service."""
        if self.type in PATH_TYPES or (self.type is DatabaseType.OTHER and self.uri.startswith("/")):
            return Path(self.uri)
        return None

    @property
    def target(self) -> str | None:
        """Give the path a container sees the file or folder at."""
        if self.path is None:
            return None
        suffix = "" if self.type is DatabaseType.FOLDER else self.path.suffix
        return f"/mnt/{self.label}{suffix}"
