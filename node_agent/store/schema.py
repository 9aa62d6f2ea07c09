"""The tables of the journal and how an older file becomes a newer one; nothing here knows what a run means."""

import sqlite3
from pathlib import Path

from node_agent.errors import ConfigError
from node_agent.store.safecopy import keep_copy

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE run (
        run_id        INTEGER PRIMARY KEY,
        task_id       INTEGER NOT NULL,
        job_id        INTEGER NOT NULL,
        image         TEXT NOT NULL,
        task          TEXT NOT NULL,
        received_at   REAL NOT NULL,
        state         INTEGER NOT NULL,
        ending        TEXT,
        outcome       TEXT,
        reason        TEXT NOT NULL,
        fault         TEXT NOT NULL,
        announced     TEXT NOT NULL,
        claimed_at    REAL,
        digest        TEXT,
        image_id      TEXT,
        container     TEXT,
        token_hash    TEXT,
        started_at    REAL,
        exit_code     INTEGER,
        out_of_memory INTEGER NOT NULL,
        has_subtasks  INTEGER NOT NULL,
        finished_at   REAL
    );
    CREATE INDEX run_open ON run (run_id) WHERE state < 9;
    CREATE TABLE transition (
        run_id     INTEGER NOT NULL REFERENCES run (run_id),
        at         REAL NOT NULL,
        from_state INTEGER NOT NULL,
        to_state   INTEGER NOT NULL
    );
    CREATE INDEX transition_of_run ON transition (run_id, at);
    """,
    """
    ALTER TABLE run ADD COLUMN input_blob TEXT;
    ALTER TABLE run ADD COLUMN result_blob TEXT;
    """,
    """
    ALTER TABLE run ADD COLUMN refusal TEXT NOT NULL DEFAULT '';
    """,
    """
    CREATE INDEX run_over ON run (COALESCE(finished_at, received_at)) WHERE state = 9;
    CREATE TABLE image (
        image_id  TEXT NOT NULL,
        reference TEXT NOT NULL,
        digest    TEXT,
        pulled_at REAL NOT NULL,
        used_at   REAL NOT NULL,
        PRIMARY KEY (image_id, reference)
    );
    """,
    """
    ALTER TABLE run ADD COLUMN entered TEXT;
    """,
    """
    ALTER TABLE run ADD COLUMN input_digest TEXT NOT NULL DEFAULT '';
    CREATE TABLE organization_key (
        organization_id INTEGER PRIMARY KEY,
        key             TEXT NOT NULL,
        pinned_at       REAL NOT NULL,
        offered         TEXT,
        offered_at      REAL
    );
    """,
)
"""Step n brings a journal of version n to version n + 1; steps are never edited once released."""


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the journal to this version of the agent, or refuse one from the future."""
    version = check_version(connection, path)
    if version == 0:
        # counts only before the first table: what is pruned later can then leave the file
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    if version == len(MIGRATIONS):
        return
    if version > 0:
        keep_copy(connection, path, version=len(MIGRATIONS))
    # All steps or none: what is between two versions no agent could read.
    steps = "\n".join(MIGRATIONS[version:])
    connection.executescript(f"BEGIN IMMEDIATE;\n{steps}\nPRAGMA user_version = {len(MIGRATIONS)};\nCOMMIT;")


def check_version(connection: sqlite3.Connection, path: Path) -> int:
    """Give the version of a journal, or refuse one from the future."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"The journal {path} was written by a newer node-agent (format {version}, this one knows {len(MIGRATIONS)}).",
            hint="Install that version again; the file was left as it is.",
        )
    return version
