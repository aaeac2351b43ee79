"""Each store test runs on SQLite and on a PostgreSQL server of our own."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from recsys.store import EventStore
from tests.conftest import service_program

START_TIMEOUT_S = 60
SETTINGS = "-c listen_addresses= -c fsync=off -c deadlock_timeout=20ms"
"""Writers that wait for each other are told after 20 ms, not a second: some tests bring that about many times."""
EMPTIED = (
    "select pg_terminate_backend(pid) from pg_stat_activity "
    "where datname = current_database() and pid <> pg_backend_pid()",
    "drop schema public cascade",
    "create schema public",
)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a fresh cluster that listens on a socket in its own folder only; stopped and removed at the end."""
    pg_ctl = service_program("pg_ctl", "postgresql", sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a short path: sockets have at most 107 bytes
    if user:
        shutil.chown(folder, user)

    def run(*arguments: str) -> None:
        done = subprocess.run(arguments, user=user, cwd=folder, capture_output=True, text=True, timeout=START_TIMEOUT_S)
        assert done.returncode == 0, done.stdout + done.stderr

    data = str(folder / "data")
    log = str(folder / "log")
    run(str(pg_ctl.parent / "initdb"), "-D", data, "-U", "recsys", "-A", "trust", "-E", "UTF8", "--no-sync")
    run(str(pg_ctl), "-D", data, "-w", "-l", log, "-o", f"{SETTINGS} -k {folder}", "start")
    try:
        yield f"postgresql://recsys@/postgres?host={folder}"
    finally:
        run(str(pg_ctl), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
        return
    database = request.getfixturevalue("database")
    yield database
    execute(database, *EMPTIED)


@pytest.fixture(scope="session")
def database(postgres: str) -> str:
    """URL of a database that tests leave empty: making one each would take ten times as long, and as many files."""
    return new_database(postgres)


def new_database(postgres: str, options: str = "template template0") -> str:
    """The URL of an empty database of the cluster. From template1 none is made while anybody looks into that."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    execute(postgres, f"create database {name} {options}")
    return sa.make_url(postgres).set(database=name).render_as_string(hide_password=False)


def execute(url: str, *statements: str) -> None:
    """Each in a transaction of its own."""
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    """An empty store."""
    opened = EventStore.open(url)
    yield opened
    opened.close()
