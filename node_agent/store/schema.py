"""The tables of the journal and how an older file becomes a newer one; nothing here knows what a run means."""

import sqlite3
from pathlib import Path

from node_agent.errors import ConfigError

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
)
"""Step n brings a journal of version n to version n + 1; steps are never edited once released."""


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the journal to this version of the agent, or refuse one from the future."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"The journal {path} was written by a newer node-agent (format {version}, this one knows {len(MIGRATIONS)}).",
            hint="Install that version again; the file was left as it is.",
        )
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
