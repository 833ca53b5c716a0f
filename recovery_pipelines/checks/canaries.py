"""The faults that a check must be seen to catch, and the small files that always offer a place.

Most canaries are kinds of the fault catalogue. Those for owners and applications are made here,
because they need places that only the facts know: a file that its owner could read, a file that
an application worked with.
"""

import gzip
import io
import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from random import Random

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recovery_pipelines.checks.base import RecoveredState
from recovery_pipelines.faults import edit
from recovery_pipelines.faults.base import Family, Fault, InjectedFault, Layer
from recovery_pipelines.faults.catalogue import source_faults
from recovery_pipelines.sandbox import Tree

MADE_FOLDER = b"recovery-canary"
"""The folder of small made files, directly in the root of every sample."""

MADE_DATA = MADE_FOLDER + b"/delta/part-0.parquet"
MADE_LOG = MADE_FOLDER + b"/delta/_delta_log/00000000000000000000.json"
"""Of a made Delta Lake table: its one data file, and the log that records it."""

_ROWS = 100


def catalogue_canaries(*kinds: str) -> list[Fault]:
    """Faults of the catalogue by kind."""
    known = source_faults()
    return [known[kind] for kind in kinds]


@dataclass(frozen=True)
class PlacedFault:
    """A fault at one of the given `paths`. `damage` returns what it did."""

    kind: str
    family: Family
    caught_by: tuple[str, ...]
    paths: Sequence[bytes]
    damage: Callable[[Tree, bytes], str]

    def inject(
        self, tree: Tree, layer: Layer, rng: Random, avoid: Collection[bytes] = ()
    ) -> InjectedFault | None:
        """See `Fault.inject`."""
        paths = [path for path in self.paths if path not in avoid]
        if not paths:
            return None
        path = rng.choice(paths)
        before = _status(tree, path)
        detail = self.damage(tree, path)
        return InjectedFault(
            kind=self.kind,
            layer=layer,
            family=self.family,
            path=path,
            detail=detail,
            before=before,
            after=_status(tree, path),
            changes_data=True,
            caught_by=self.caught_by,
        )


def _status(tree: Tree, path: bytes) -> str:
    if not tree.exists(path):
        return "absent"
    found = tree.stat(path)
    return f"mode {found.st_mode & 0o7777:04o}, owner {found.st_uid}, {found.st_size} bytes"


def owner_canaries(readable: Iterable[bytes], caught_by: str) -> list[Fault]:
    """Ways to lock the owner out of files that it could read."""
    files = sorted(readable)
    directories = sorted({edit.parent(path) for path in files} - {b""})

    def remove_mode(tree: Tree, path: bytes) -> str:
        tree.chmod(path, 0)
        return "all permissions removed"

    def give_away(tree: Tree, path: bytes) -> str:
        tree.chmod(path, 0o600)
        tree.chown(path, tree.stat(path).st_uid + 1, -1)
        return "private, and of another user"

    def fault(kind: str, paths: Sequence[bytes], damage: Callable[[Tree, bytes], str]) -> Fault:
        return PlacedFault(kind, Family.METADATA, (caught_by,), paths, damage)

    return [
        fault("owner_locked_out", files, remove_mode),
        fault("directory_locked", directories, remove_mode),
        fault("file_of_another_user", files if os.geteuid() == 0 else [], give_away),
    ]


def application_canaries(sample: RecoveredState, caught_by: str) -> list[Fault]:
    """For each application one broken file, and one that is sound but holds another value."""
    working = sample.facts.filter(pc.is_valid(sample.facts["application_facts"]))
    names = set(sample.found_entries["path"].to_pylist())
    faults: list[Fault] = []
    for application, (name, build, offset) in _MADE_APPLICATION_FILES.items():
        rows = working.filter(pc.equal(working["application"], application))
        # A database with a live journal can be whole again although its file is damaged.
        paths = [
            path
            for path in rows["path"].to_pylist()
            if not {path + b"-wal", path + b"-journal"} & names
        ]

        def break_file(tree: Tree, path: bytes, offset: int = offset) -> str:
            start = offset if offset >= 0 else tree.stat(path).st_size + offset
            with edit.quiet(tree, path):
                old = edit.read_range(tree, path, start, 8)
                edit.write_range(tree, path, start, bytes(byte ^ 0xFF for byte in old))
            return f"8 bytes inverted at byte {start}"

        def change_value(tree: Tree, path: bytes, build: Callable[[int], bytes] = build) -> str:
            with edit.quiet(tree, path):
                edit.rewrite(tree, path, [build(1)])
            return "one value is another"

        made = [path for path in paths if path == MADE_FOLDER + b"/" + name]
        family, catcher = Family.CONTENT, (caught_by,)
        faults += [
            PlacedFault(f"{application}_broken", family, catcher, paths, break_file),
            PlacedFault(f"{application}_value_changed", family, catcher, made, change_value),
        ]
    return faults


def make_files(tree: Tree) -> None:
    """Make MADE_FOLDER with one of each thing that a canary needs, readable by everyone."""

    def inside(name: bytes) -> bytes:
        return MADE_FOLDER + b"/" + name

    text = "".join(f"{row:08d} a line of text\n" for row in range(1000)).encode()
    tree.mkdir(MADE_FOLDER)
    tree.mkdir(inside(b"empty"))
    files = {name: build(0) for name, build, _ in _MADE_APPLICATION_FILES.values()}
    files |= {b"text": text, b"another": text[::-1]}
    for directory in (b"delta", b"delta/_delta_log"):
        tree.mkdir(inside(directory), 0o755)
        tree.chmod(inside(directory), 0o755)
    data = table_file(rows=_ROWS)
    contents = {inside(name): content for name, content in files.items()}
    for path, content in (contents | {MADE_DATA: data, MADE_LOG: _delta_log(data)}).items():
        tree.write(path, content)
        tree.chmod(path, 0o644)
    tree.link(inside(b"text"), inside(b"hard-link"))
    tree.symlink(b"text", inside(b"symbolic-link"))
    with suppress(OSError):  # not every file system has extended attributes
        tree.setxattr(inside(b"text"), "user.recovery-canary", b"sings")
    for directory in (inside(b"empty"), MADE_FOLDER):
        tree.chmod(directory, 0o755)


def table_file(rows: int) -> bytes:
    """A data file of the made table."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"value": range(rows)}), buffer)
    return buffer.getvalue()


def _delta_log(data: bytes) -> bytes:
    """The first version of a table with one file (the Delta transaction log protocol)."""
    fields = [{"name": "value", "type": "long", "nullable": True, "metadata": {}}]
    actions = (
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
        {
            "metaData": {
                "id": "00000000-0000-0000-0000-000000000000",
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps({"type": "struct", "fields": fields}),
                "partitionColumns": [],
                "configuration": {},
            }
        },
        {
            "add": {
                "path": MADE_DATA.rsplit(b"/", 1)[-1].decode(),
                "partitionValues": {},
                "size": len(data),
                "modificationTime": 0,
                "dataChange": True,
                "stats": json.dumps({"numRecords": _ROWS}),
            }
        },
    )
    return "".join(json.dumps(action) + "\n" for action in actions).encode()


def _values(changed: int) -> list[int]:
    return [*range(_ROWS - 1), _ROWS + changed]


def _sqlite_file(changed: int) -> bytes:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE canary (id INTEGER PRIMARY KEY, value INTEGER)")
        rows = [(value,) for value in _values(changed)]
        connection.executemany("INSERT INTO canary (value) VALUES (?)", rows)
        connection.commit()
        return connection.serialize()


def _parquet_file(changed: int) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"value": _values(changed)}), buffer)
    return buffer.getvalue()


def _gzip_file(changed: int) -> bytes:
    return gzip.compress("\n".join(map(str, _values(changed))).encode(), mtime=0)


_MADE_APPLICATION_FILES: dict[str, tuple[bytes, Callable[[int], bytes], int]] = {
    "sqlite": (b"database.sqlite", _sqlite_file, 100),
    "parquet": (b"table.parquet", _parquet_file, -8),
    "gzip": (b"text.gz", _gzip_file, -8),
}
"""Application to name and content of its made file, and to the byte where any of its files breaks:
the header of SQLite's first page, the end of Parquet's footer, gzip's checksum."""
