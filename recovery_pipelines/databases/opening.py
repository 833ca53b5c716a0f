"""Which class opens which kind of database."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from recovery_pipelines.databases import dagster_home, dagster_postgres, postgres, redis, sqlite
from recovery_pipelines.databases.base import Database, DatabaseFault
from recovery_pipelines.sandbox import Sandbox


@contextmanager
def open_database(kind: str, folder: Path, sandbox: Sandbox) -> Iterator[Database]:
    """The database whose files are in `folder`. Raises DatabaseError if it does not work."""
    if kind == "sqlite":
        with sqlite.open_sqlite(folder) as database:
            yield database
    elif kind == "dagster":
        with dagster_home.open_home(folder) as home:
            yield home
    elif kind == "dagster_postgres":
        with dagster_postgres.open_storage(folder, sandbox) as storage:
            yield storage
    elif kind == "postgres":
        with postgres.open_postgres(folder, sandbox) as cluster:
            yield cluster
    else:
        with redis.open_redis(folder, sandbox) as server:
            yield server


@contextmanager
def make_database(
    kind: str, folder: Path, sandbox: Sandbox, *, rows: int, seed: int, taken_from: Path | None
) -> Iterator[Database]:
    """A new database in the empty `folder`: test data, or those of `taken_from`, only read."""
    if kind != "redis":
        opened: AbstractContextManager[Database]
        if kind == "postgres":
            opened = postgres.open_postgres(folder, sandbox, new=True)
        elif kind == "dagster_postgres":
            opened = dagster_postgres.open_storage(folder, sandbox, new=True)
        elif kind == "dagster":
            opened = dagster_home.open_home(folder)
        else:
            opened = sqlite.open_sqlite(folder, new=True)
        with opened as database:
            if taken_from:
                database.load(taken_from)
            else:
                database.fill(rows, seed)
            yield database
        return
    if taken_from:
        redis.take_over(taken_from, folder)
    with redis.open_redis(folder, sandbox, new=not taken_from) as server:
        if not taken_from:
            server.fill(rows, seed)
        yield server


def faults_of(kind: str) -> Mapping[str, DatabaseFault]:
    """The damages that can be done to a kind of database, by name; the worst last."""
    return _FAULTS[kind]


_FAULTS = {
    "dagster": dagster_home.DagsterHome.faults,
    "dagster_postgres": dagster_postgres.DagsterPostgres.faults,
    "postgres": postgres.PostgresDatabase.faults,
    "redis": redis.RedisDatabase.faults,
    "sqlite": sqlite.SqliteDatabase.faults,
}
