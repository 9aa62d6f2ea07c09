"""A real PostgreSQL on loopback, with one small table.

Owns the server's process and its files. Must not know who reads the table.
"""

import grp
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port

START_SECONDS = 30
TABLE = "CREATE TABLE patients (name text, age integer); INSERT INTO patients VALUES ('a', 41), ('b', 43);"


class PostgresError(Exception):
    """The server does not start; the text says why."""


@dataclass(frozen=True)
class Postgres:
    """A server that answers at 127.0.0.1."""

    port: int
    password: str

    def uri(self, host: str, *, port: int | None = None) -> str:
        """Write the address of the database as seen from somewhere."""
        return f"postgresql://reader:{self.password}@{host}:{port or self.port}/postgres"


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a server of its own on a free port."""
    programs = _programs()
    found = Postgres(free_port(), secrets.token_hex(8))
    with tempfile.TemporaryDirectory(prefix="lab-postgres-") as folder:
        place = Path(folder)
        user = _user()
        os.chown(place, pwd.getpwnam(user).pw_uid, grp.getgrnam(user).gr_gid)
        _initialize(programs, place, user)
        log = (place / "log").open("w")
        with log:
            process = subprocess.Popen(
                [
                    *(str(programs / "postgres"), "-D", str(place / "data"), "-p", str(found.port)),
                    *("-c", "listen_addresses=127.0.0.1", "-k", folder, "-c", "fsync=off"),
                ],
                user=user,
                group=user,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                _fill(programs, place, found, user)
                yield found
            finally:
                process.terminate()
                process.wait()


def _programs() -> Path:
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "postgres").exists():
            return folder
    program = shutil.which("postgres")
    if program is None:
        raise PostgresError("PostgreSQL is not installed: run tests/lab/setup.sh")
    return Path(program).parent


def _user() -> str:
    # The server refuses to run as root.
    return "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def _initialize(programs: Path, place: Path, user: str) -> None:
    command = [
        *(str(programs / "initdb"), "-D", str(place / "data"), "-U", "owner"),
        *("--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync", "--locale=C", "-E", "UTF8"),
    ]
    done = subprocess.run(
        command, user=user, group=user, cwd=place, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise PostgresError(f"initdb: {done.stderr.strip()[-600:]}")


def _fill(programs: Path, place: Path, found: Postgres, user: str) -> None:
    """Make the table and the user who may read it, as soon as the server answers."""
    access = f"CREATE USER reader PASSWORD '{found.password}'; GRANT SELECT ON patients TO reader;"
    command = [
        str(programs / "psql"),
        "-h",
        str(place),
        "-p",
        str(found.port),
        "-U",
        "owner",
        "-d",
        "postgres",
    ]
    deadline = time.monotonic() + START_SECONDS
    while True:
        done = subprocess.run(
            [*command, "-v", "ON_ERROR_STOP=1", "-q", "-c", TABLE + access],
            user=user, group=user, cwd=place, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise PostgresError(
                f"PostgreSQL does not answer: {done.stderr} {(place / 'log').read_text()[-600:]}"
            )
        time.sleep(0.1)
