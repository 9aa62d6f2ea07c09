"""The parts of the journal that go again: runs that are long over, and which images this agent pulled.

Statements only: who may write, and when, is the journal's matter.
"""

import sqlite3
from collections.abc import Collection, Iterable

from node_agent.domain.keeping import PulledImage
from node_agent.domain.run import RunId

BATCH = 500
"""So many runs go at once: the control loop waits for it."""
FREED_PAGES = 1000
"""So many pages of the file go back to the disk at once."""
_OVER = "state = 9 AND COALESCE(finished_at, received_at) < ?"

OLD_RUNS = (
    f"SELECT run_id FROM run WHERE {_OVER} "  # noqa: S608 - our own words
    "ORDER BY COALESCE(finished_at, received_at) LIMIT ?"
)
COUNT_OLD_RUNS = f"SELECT COUNT(*) FROM run WHERE {_OVER}"  # noqa: S608 - the same
USE_IMAGE = "UPDATE image SET used_at = :at WHERE image_id = :image_id"
_NOTE_IMAGE = (
    "INSERT INTO image (image_id, reference, digest, pulled_at, used_at) "
    "VALUES (:image_id, :reference, :digest, :pulled_at, :used_at) "
    "ON CONFLICT DO UPDATE SET digest = excluded.digest, used_at = excluded.used_at"
)


def delete_old_runs(connection: sqlite3.Connection, *, before: float, spare: Collection[RunId]) -> int:
    """Delete the oldest runs that were over before that time, with their transitions, and give their number.

    To be called within a transaction.
    """
    found = connection.execute(OLD_RUNS, (before, BATCH + len(spare)))
    going = [(run_id,) for (run_id,) in found.fetchall() if run_id not in spare][:BATCH]
    connection.executemany("DELETE FROM transition WHERE run_id = ?", going)
    connection.executemany("DELETE FROM run WHERE run_id = ?", going)
    return len(going)


def free_pages(connection: sqlite3.Connection) -> None:
    """Give some of what was freed back to the disk; in an older journal it is used again instead."""
    # the statement frees a page with each step, and `execute` takes only the first one of what has no columns
    connection.executescript(f"PRAGMA incremental_vacuum({FREED_PAGES})")


def note_image(connection: sqlite3.Connection, image: PulledImage) -> None:
    """Record that this agent pulled the image."""
    connection.execute(
        _NOTE_IMAGE,
        {
            "image_id": image.image_id,
            "reference": image.reference,
            "digest": image.digest,
            "pulled_at": image.pulled_at,
            "used_at": image.used_at,
        },
    )


def forget_images(connection: sqlite3.Connection, image_ids: Iterable[str]) -> None:
    """Forget that this agent pulled these images: they are gone, or somebody else's."""
    connection.executemany("DELETE FROM image WHERE image_id = ?", [(image_id,) for image_id in image_ids])


def images_in(connection: sqlite3.Connection) -> list[PulledImage]:
    """Give every image this agent pulled; none in a journal of a version that did not note them."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'image'").fetchone():
        return []
    rows = connection.execute("SELECT image_id, reference, digest, pulled_at, used_at FROM image")
    return [
        PulledImage(
            image_id=image_id, reference=reference, digest=digest, pulled_at=pulled_at, used_at=used_at
        )
        for image_id, reference, digest, pulled_at, used_at in rows
    ]


def old_runs_in(connection: sqlite3.Connection, *, before: float) -> int:
    """Count the runs that were over before that time."""
    return int(connection.execute(COUNT_OLD_RUNS, (before,)).fetchone()[0])
