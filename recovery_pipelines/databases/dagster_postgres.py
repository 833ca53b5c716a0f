"""The storage of a Dagster instance in PostgreSQL, on a server of our own.

A team's is copied once, by pg_dump from the database that its `dagster.yaml` names, and the copy is
compared with what the same transaction read there. Then it is a cluster as any other, with rows
and objects compared by SQL; that Dagster itself reads its runs, assets, schedules and sensors from
it is asked of Dagster.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from recovery_pipelines.databases import postgres_contents
from recovery_pipelines.databases.base import PRIVILEGE, Contents, DatabaseFault, differences
from recovery_pipelines.databases.dagster_process import (
    EVENTS_EMPTIED,
    ONE_ASSET_FORGOTTEN,
    ONE_RUN_CHANGED,
    SCHEDULES_STOPPED,
    DagsterProcess,
    start_dagster,
)
from recovery_pipelines.databases.postgres import (
    HERE,
    PORT,
    PostgresDatabase,
    beside_of,
    connect,
    explained,
    open_postgres,
)
from recovery_pipelines.errors import DatabaseError
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.tools import postgres_programs, run_tool

_ADDRESS = f"postgresql+psycopg2://postgres@/postgres?host={HERE}&port={PORT}"
_CONNECT_SECONDS = 10
_COPY_SECONDS = 3600.0
_COPIES = 4
"""That must find room: the dump, the cluster, what is archived of it, the restored one."""
_NOT_COPIED = (PRIVILEGE, "extension")
_SETVAL = "select pg_catalog.setval(%s::pg_catalog.regclass, %s, %s)"


class DagsterPostgres(PostgresDatabase):
    """A running PostgreSQL server with a Dagster instance's storage, and a Dagster on it."""

    kind: ClassVar[str] = "dagster_postgres"
    faults: ClassVar[Mapping[str, DatabaseFault]]

    def __init__(
        self, folder: Path, connection: psycopg.Connection[Any], dagster: DagsterProcess
    ) -> None:
        super().__init__(folder, connection)
        self._dagster = dagster

    def fill(self, rows: int, seed: int) -> None:
        self._dagster.ask("fill", rows=rows, seed=seed)

    def load(self, file: Path) -> None:
        """Copy the database that the home's `dagster.yaml` names; it is only read."""
        address = self._dagster.located(file, "postgres", "pgbackrest").replace(
            "+psycopg2:", ":", 1
        )
        with _named(file):
            source = psycopg.connect(address, autocommit=True, connect_timeout=_CONNECT_SECONDS)
            with closing(source), source.transaction():
                source.execute("set transaction isolation level repeatable read, read only")
                row = source.execute(
                    "select pg_catalog.pg_export_snapshot(), pg_catalog.current_schemas(false), "
                    "pg_catalog.pg_database_size(pg_catalog.current_database())"
                ).fetchone()
                assert row is not None
                snapshot, schemas, size_bytes = row
                self._require_room(size_bytes)
                self._copy(address, snapshot)
                expected = postgres_contents.describe(source, without=_NOT_COPIED)
        path = sql.SQL(", ").join(map(sql.Identifier, schemas))
        with explained(self.folder):
            self.connection.execute(
                sql.SQL("alter database postgres set search_path = {}").format(path)
            )
            found = postgres_contents.describe(self.connection, without=_NOT_COPIED)
        if wrong := differences(expected, found):
            name, told = next(iter(wrong.items()))
            raise DatabaseError(
                f"pg_dump's copy of the storage of {file} is not what was read there: {name} {told}"
            )
        self._dagster.readable()

    def change(self, seed: int) -> None:
        self._dagster.ask("change", seed=seed)

    def describe(self) -> Contents:
        return super().describe() | self._dagster.readable()

    def written(self) -> bool:
        """By SQL and by Dagster; what that took from sequences is given back."""
        if not super().written():
            return False
        with explained(self.folder):
            before = postgres_contents.positions(self.connection)
            worked = bool(self._dagster.ask("written"))
            for name, position in postgres_contents.positions(self.connection).items():
                if position != before.get(name, position):
                    self.connection.execute(_SETVAL, (name, *before[name]))
        return worked

    def _require_room(self, size_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < _COPIES * size_bytes:
            raise DatabaseError(
                f"the storage takes {size_bytes:,} bytes, {_COPIES} copies of which need room: "
                f"{free:,} are free"
            )

    def _copy(self, address: str, snapshot: str) -> None:
        beside, programs = beside_of(self.folder), postgres_programs()
        dump, plain = beside / "storage.dump", ("--no-owner", "--no-privileges")
        words: dict[str, Any] = dict(conninfo_to_dict(address))
        secret = {"PGPASSWORD": words.pop("password")} if words.get("password") else {}
        source = make_conninfo(**words)
        dumped = (programs / "pg_dump", "--format=custom", *plain, f"--snapshot={snapshot}")
        into = ("-h", HERE, "-p", str(PORT), "-U", "postgres", "-d", "postgres")
        restored = (programs / "pg_restore", "--exit-on-error", *plain, *into, dump)
        for argv in ((*dumped, f"--file={dump}", f"--dbname={source}"), restored):
            done = run_tool(argv, cwd=beside, env=secret, timeout_seconds=_COPY_SECONDS)
            if done.returncode:
                raise DatabaseError(f"{argv[0].name} of Dagster's storage: {done.complaint}")
        dump.unlink()


@contextmanager
def open_storage(folder: Path, sandbox: Sandbox, *, new: bool = False) -> Iterator[DagsterPostgres]:
    """A server on the cluster in `folder`, or a new one, with a Dagster on it."""
    with (
        open_postgres(folder, sandbox, new=new) as server,
        start_dagster(_ADDRESS, beside_of(folder)) as dagster,
    ):
        yield DagsterPostgres(folder, server.connection, dagster)


@contextmanager
def _named(home: Path) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        said = " ".join(str(error).split())
        raise DatabaseError(f"the storage that {home / 'dagster.yaml'} names: {said}") from error


def _sql(caught_by: str, statement: str) -> DatabaseFault:
    def inject(storage: DagsterPostgres, _chance: Random) -> str:
        with connect(storage.folder) as connection:  # a new one looks where Dagster does
            count = connection.execute(statement.encode()).rowcount
        return f"{statement}: {count} rows" if count else ""

    return DatabaseFault(caught_by, inject)


def _drop_index(storage: DagsterPostgres, _chance: Random) -> str:
    with connect(storage.folder) as connection:
        found = connection.execute(
            "select indexrelid::pg_catalog.regclass::text from pg_catalog.pg_index "
            "where not indisunique and indrelid = 'runs'::pg_catalog.regclass order by 1"
        ).fetchone()
        if found:
            connection.execute(f"drop index {found[0]}".encode())
    return f"index {found[0]} dropped" if found else ""


DagsterPostgres.faults = {
    "run_changed": _sql("checksums_match", ONE_RUN_CHANGED),
    "asset_forgotten": _sql("checksums_match", ONE_ASSET_FORGOTTEN),
    "schedules_stopped": _sql("checksums_match", SCHEDULES_STOPPED),
    "events_emptied": _sql("checksums_match", EVENTS_EMPTIED),
    "index_dropped": DatabaseFault("directory_structure_intact", _drop_index),
    "privilege_granted": _sql("permissions_correct", "grant all on runs to public"),
    "table_dropped": _sql("all_files_recovered", "drop table daemon_heartbeats"),
}
