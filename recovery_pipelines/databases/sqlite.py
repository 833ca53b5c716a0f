"""A SQLite database: one file, `database.sqlite`, in its folder."""

import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import ClassVar
from urllib.parse import quote

import xxhash

from recovery_pipelines.databases.base import Contents, DatabaseFault
from recovery_pipelines.errors import DatabaseError

FILE_NAME = "database.sqlite"
_SCHEMA = """
create table team (id integer primary key, name text not null unique);
create table member (
    id integer primary key autoincrement,
    team int not null references team,
    name text not null check (name <> ''),
    note blob
);
create index member_name on member (name);
create view size as select team, count(*) as members from member group by team;
create trigger keep_name after update of name on member
    begin update team set name = name where id = new.team; end;
insert into team with recursive n(i) as (select 1 union all select i + 1 from n where i < 10)
    select i, 'team ' || i from n;
"""
_SETTINGS = ("user_version", "application_id", "encoding")
_WRITE_TEST = "recovery_write_test"


def connect(file: Path, *, mode: str = "rw", more: str = "") -> sqlite3.Connection:
    """A connection to a file that exists, without implicit transactions.

    Raises DatabaseError if there is no database there.
    """
    try:
        address = f"file:{quote(str(file))}?mode={mode}{more}"
        connection = sqlite3.connect(address, uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise DatabaseError(f"{file} cannot be opened: {error}") from error
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    connection.execute("pragma trusted_schema = off")
    return connection


def rows_digest(rows: Iterator[object]) -> str:
    """Number and digest of the rows, whatever their order."""
    total = count = 0
    for row in rows:
        total += xxhash.xxh3_128_intdigest(ascii(row).encode())
        count += 1
    return f"{count} rows {total % (1 << 128):032x}"


def privilege(file: Path) -> str:
    """A database file's mode and owner."""
    status = file.stat()
    mode = f"{stat.S_IMODE(status.st_mode):04o}"
    return f"mode {mode}, owner {status.st_uid}:{status.st_gid}"


def make_public(file: Path) -> str:
    """Let others write it, or no longer; says what was done."""
    mode = stat.S_IMODE(file.stat().st_mode)
    file.chmod(mode ^ 0o022)
    return f"mode {mode:04o} became {mode ^ 0o022:04o}"


def tables(connection: sqlite3.Connection) -> list[str]:
    """Names of all tables that hold rows."""
    names = connection.execute(
        "select name from pragma_table_list"
        " where schema = 'main' and type in ('table', 'shadow') order by name"
    )
    return [name for (name,) in names.fetchall()]


class SqliteDatabase:
    """An open SQLite database."""

    kind: ClassVar[str] = "sqlite"
    faults: ClassVar[Mapping[str, DatabaseFault]]

    def __init__(self, file: Path, connection: sqlite3.Connection) -> None:
        self._file = file
        self._connection = connection

    def fill(self, rows: int, seed: int) -> None:
        self._connection.executescript(f"begin; {_SCHEMA} pragma user_version = 7; commit")
        self._insert(rows, Random(seed))

    def load(self, file: Path) -> None:
        with closing(connect(file, mode="ro")) as source, _explained(file):
            source.backup(self._connection)
        found = file.stat()
        self._file.chmod(stat.S_IMODE(found.st_mode))

    def change(self, seed: int) -> None:
        """New rows, and a few changed and removed, in a table of our own where the data is not."""
        rng = Random(seed)
        if "member" not in tables(self._connection):
            create = "create table if not exists recovery_changes (id integer primary key, what)"
            self._connection.execute(create)
            what = [(rng.randbytes(16),) for _ in range(20)]
            self._connection.executemany("insert into recovery_changes (what) values (?)", what)
            return
        self._insert(20, rng)
        ids = [row[0] for row in self._connection.execute("select id from member")]
        for number in rng.sample(ids, 5):
            name = (f"renamed {rng.random()}", number)
            self._connection.execute("update member set name = ? where id = ?", name)
        gone = rng.choice(ids)
        self._connection.execute("delete from member where id = ?", (gone,))

    def describe(self) -> Contents:
        with _explained(self._file):
            found = {
                f"{kind} {name}": str(sql)
                for kind, name, sql in self._connection.execute(
                    "select type, name, sql from sqlite_schema"
                )
            }
            for table in tables(self._connection):
                rows = self._connection.execute(f"select * from {quoted(table)}")
                found[f"rows {quoted(table)}"] = rows_digest(rows)
            for name in _SETTINGS:
                found[f"setting {name}"] = str(
                    self._connection.execute(f"pragma {name}").fetchone()
                )
        return found | {"privilege file": privilege(self._file)}

    def problems(self) -> str:
        try:
            said = [row[0] for row in self._connection.execute("pragma integrity_check(3)")]
        except sqlite3.Error as error:
            said = [str(error)]
        return "" if said == ["ok"] else f"integrity_check: {'; '.join(map(str, said))}"

    def written(self) -> bool:
        try:
            self._connection.execute("begin")
            self._connection.execute(f"create table {_WRITE_TEST} (x)")
            self._connection.execute(f"insert into {_WRITE_TEST} values ('written')")
            row = self._connection.execute(f"select x from {_WRITE_TEST}").fetchone()
            self._connection.execute("rollback")
        except sqlite3.Error:
            return False
        return bool(row == ("written",))

    def execute(self, statement: str, *values: object) -> int:
        """Carry it out; returns the number of rows that it changed."""
        return self._connection.execute(statement, values).rowcount

    def objects(self, kind: str) -> list[str]:
        """Quoted names of the schema's objects of one kind that can be dropped."""
        return [
            quoted(name)
            for (name,) in self._connection.execute(
                "select name from sqlite_schema where type = ? and sql is not null"
                " and name not like 'sqlite_%' order by name",
                (kind,),
            )
        ]

    def columns(self, table: str) -> list[str]:
        """Quoted names of a table's columns that are not part of its key."""
        rows = self._connection.execute(
            f"select name from pragma_table_info({_text(table)}) where not pk"
        )
        return [quoted(name) for (name,) in rows]

    def _insert(self, rows: int, rng: Random) -> None:
        values = [
            (rng.randint(1, 10), f"member {rng.random()}", rng.randbytes(40)) for _ in range(rows)
        ]
        statement = "insert into member (team, name, note) values (?, ?, ?)"
        self._connection.execute("begin")
        self._connection.executemany(statement, values)
        self._connection.execute("commit")


@contextmanager
def open_sqlite(folder: Path, *, new: bool = False) -> Iterator[SqliteDatabase]:
    """The database in `folder`, or a new, empty one."""
    file = folder / FILE_NAME
    if new:
        file.touch(0o640)
    with closing(connect(file)) as connection:
        yield SqliteDatabase(file, connection)


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise DatabaseError(f"SQLite cannot read {file}: {error}") from error


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(quoted: str) -> str:
    return "'" + quoted[1:-1].replace('""', '"').replace("'", "''") + "'"


def _with_rows(database: SqliteDatabase, rng: Random) -> Iterator[tuple[str, int]]:
    """Tables in a seeded order, each with the rowid of one of its rows."""
    names = database.objects("table")
    for table in rng.sample(names, len(names)):
        try:
            rows = database._connection.execute(f"select rowid from {table}").fetchall()
        except sqlite3.Error:  # without rowid, or virtual
            continue
        if rows:
            yield table, rng.choice(rows)[0]


def _delete_row(database: SqliteDatabase, rng: Random) -> str:
    for table, row in _with_rows(database, rng):
        if database.execute(f"delete from {table} where rowid = ?", row):
            return f"row {row} of {table} deleted"
    return ""


def _change_row(database: SqliteDatabase, rng: Random) -> str:
    for table, row in _with_rows(database, rng):
        for column in database.columns(table):
            try:
                database.execute(
                    f"update {table} set {column} = ? where rowid = ?",
                    f"changed {rng.random()}",
                    row,
                )
            except sqlite3.Error:  # a constraint forbids it
                continue
            return f"{column} of row {row} of {table} changed"
    return ""


def _empty_table(database: SqliteDatabase, rng: Random) -> str:
    for table, _ in _with_rows(database, rng):
        if database.execute(f"delete from {table}"):
            return f"all rows of {table} deleted"
    return ""


def _drop(kind: str, caught_by: str) -> DatabaseFault:
    def drop(database: SqliteDatabase, rng: Random) -> str:
        names = database.objects(kind)
        if not names:
            return ""
        name = rng.choice(names)
        database.execute(f"drop {kind} {name}")
        return f"{kind} {name} dropped"

    return DatabaseFault(caught_by, drop)


SqliteDatabase.faults = {
    "row_changed": DatabaseFault("checksums_match", _change_row),
    "row_deleted": DatabaseFault("checksums_match", _delete_row),
    "table_emptied": DatabaseFault("checksums_match", _empty_table),
    "index_dropped": _drop("index", "directory_structure_intact"),
    "view_dropped": _drop("view", "directory_structure_intact"),
    "trigger_dropped": _drop("trigger", "directory_structure_intact"),
    "table_dropped": _drop("table", "all_files_recovered"),
    "mode_changed": DatabaseFault(
        "permissions_correct", lambda database, _rng: make_public(database._file)
    ),
}
