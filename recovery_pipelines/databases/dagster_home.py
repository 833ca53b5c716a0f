"""The storage of a Dagster instance in SQLite: a folder of databases, its `DAGSTER_HOME`.

The databases are described row by row; that Dagster itself reads its runs, assets, schedules and
sensors from them is asked of Dagster.
"""

import shutil
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import ClassVar

from recovery_pipelines.databases.base import Contents, DatabaseFault
from recovery_pipelines.databases.dagster_process import (
    EVENTS_EMPTIED,
    ONE_ASSET_FORGOTTEN,
    ONE_RUN_CHANGED,
    SCHEDULES_STOPPED,
    DagsterProcess,
    start_dagster,
)
from recovery_pipelines.databases.sqlite import (
    connect,
    make_public,
    privilege,
    quoted,
    rows_digest,
    tables,
)
from recovery_pipelines.errors import DatabaseError

_RUNS = "history/runs.db"
_EVENTS = "history/runs/index.db"
_SCHEDULES = "schedules/schedules.db"
_NEEDED = (_RUNS, _EVENTS, _SCHEDULES)
_BESIDE = ("-wal", "-shm", "-journal")


class DagsterHome:
    """A Dagster instance's storage, and a Dagster that has it open."""

    kind: ClassVar[str] = "dagster"
    faults: ClassVar[Mapping[str, DatabaseFault]]

    def __init__(self, folder: Path, dagster: DagsterProcess) -> None:
        self.folder = folder
        self._dagster = dagster

    def fill(self, rows: int, seed: int) -> None:
        self._dagster.ask("fill", rows=rows, seed=seed)
        for path in self._databases():
            path.chmod(0o640)

    def load(self, file: Path) -> None:
        """Take over a home that may be in use: each database by SQLite's own backup interface."""
        file = Path(self._dagster.located(file, "sqlite", "tar"))
        if not (file / _RUNS).is_file():
            raise DatabaseError(
                f"{file} holds no Dagster storage in SQLite ({_RUNS} is missing): "
                "name the folder that DAGSTER_HOME names"
            )
        for source in sorted(file.rglob("*")):
            target = self.folder / source.relative_to(file)
            if source.is_dir() and not source.is_symlink():
                target.mkdir(exist_ok=True)
            elif source.suffix == ".db":
                _copy_database(source, target)
            elif source.is_file() and not source.name.endswith(_BESIDE):
                shutil.copy2(source, target)

    def change(self, seed: int) -> None:
        self._dagster.ask("change", seed=seed)

    def describe(self) -> Contents:
        lacking = [name for name in _NEEDED if not (self.folder / name).is_file()]
        if lacking:  # Dagster would make new, empty ones
            raise DatabaseError(f"the Dagster home lacks {', '.join(lacking)}")
        found: Contents = {}
        for path in self._databases():
            found |= _describe_database(path, str(path.relative_to(self.folder)))
        return found | self._dagster.readable()

    def problems(self) -> str:
        said = []
        for path in self._databases():
            try:
                with closing(connect(path, mode="ro")) as connection:
                    (found,) = connection.execute("pragma integrity_check(1)").fetchone()
            except (sqlite3.Error, DatabaseError) as error:
                found = str(error)
            if found != "ok":
                said.append(f"{path.relative_to(self.folder)}: {found}")
        return "; ".join(said[:3])

    def written(self) -> bool:
        return bool(self._dagster.ask("written"))

    def execute(self, name: str, statement: str) -> int:
        """Carry a statement out in one of the databases; returns how many rows it changed."""
        with closing(connect(self.folder / name)) as connection:
            return connection.execute(statement).rowcount

    def _databases(self) -> list[Path]:
        return sorted(self.folder.rglob("*.db"))


@contextmanager
def open_home(folder: Path) -> Iterator[DagsterHome]:
    """The storage in `folder`, with a Dagster on it that obeys no `dagster.yaml`."""
    with start_dagster(folder) as dagster:
        yield DagsterHome(folder, dagster)


def _copy_database(source: Path, target: Path) -> None:
    try:
        with (
            closing(connect(source, mode="ro")) as origin,
            closing(sqlite3.connect(target)) as sink,
        ):
            origin.backup(sink)
    except sqlite3.Error as error:
        raise DatabaseError(f"SQLite cannot read {source}: {error}") from error
    target.chmod(stat.S_IMODE(source.stat().st_mode))


def _describe_database(path: Path, name: str) -> Contents:
    try:
        with closing(connect(path, mode="ro")) as connection:
            schema = connection.execute("select type, name, sql from sqlite_schema order by 1, 2")
            found = {
                f"schema {name}": rows_digest(iter(schema.fetchall())),
                **{
                    f"rows {name} {table}": rows_digest(
                        connection.execute(f"select * from {quoted(table)}")
                    )
                    for table in tables(connection)
                },
            }
    except sqlite3.Error as error:
        raise DatabaseError(f"SQLite cannot read {name}: {error}") from error
    return found | {f"privilege {name}": privilege(path)}


def _sql(caught_by: str, name: str, statement: str) -> DatabaseFault:
    def inject(home: DagsterHome, _chance: Random) -> str:
        count = home.execute(name, statement)
        return f"{name}: {statement}: {count} rows" if count else ""

    return DatabaseFault(caught_by, inject)


def _lose_events_of_a_run(home: DagsterHome, chance: Random) -> str:
    files = [
        path for path in home._databases() if path.parent.name == "runs" and len(path.stem) == 36
    ]
    if not files:
        return ""
    lost = chance.choice(files)
    lost.unlink()
    return f"{lost.name} removed"


def _drop_index(home: DagsterHome, _chance: Random) -> str:
    with closing(connect(home.folder / _RUNS)) as connection:
        found = connection.execute(
            "select name from sqlite_schema where type = 'index' and sql is not null"
        ).fetchone()
        if found:
            connection.execute(f"drop index {quoted(found[0])}")
    return f"index {found[0]} dropped" if found else ""


DagsterHome.faults = {
    "run_changed": _sql("checksums_match", _RUNS, ONE_RUN_CHANGED),
    "asset_forgotten": _sql("checksums_match", _EVENTS, ONE_ASSET_FORGOTTEN),
    "schedules_stopped": _sql("checksums_match", _SCHEDULES, SCHEDULES_STOPPED),
    "events_emptied": _sql("checksums_match", _EVENTS, EVENTS_EMPTIED),
    "index_dropped": DatabaseFault("directory_structure_intact", _drop_index),
    "mode_changed": DatabaseFault(
        "permissions_correct", lambda home, _chance: make_public(home.folder / _RUNS)
    ),
    "run_events_lost": DatabaseFault("all_files_recovered", _lose_events_of_a_run),
}
