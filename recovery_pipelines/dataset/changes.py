"""Changes to any tree, as they happen between one backup and the next."""

import gzip
import os
import sqlite3
import stat
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from recovery_pipelines.dataset.common import FILE_MODES, NEWEST_MTIME_NS, OLDEST_MTIME_NS
from recovery_pipelines.faults import edit
from recovery_pipelines.sandbox import Tree

_CHANGED_DIVISOR = 50
_FEWEST_CHANGES = 8
_MOST_CHANGES = 400
_SQLITE_MAGIC = b"SQLite format 3\0"
_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"
_MAX_PARQUET_BYTES = 256 << 20
_APPLICATION_SUFFIXES = (b".db", b".sqlite", b".parquet", b".gz")


@dataclass(frozen=True)
class Changes:
    """How many entries `change_dataset` touched, by what it did to them."""

    edited: int
    metadata_changed: int
    deleted: int
    renamed: int
    directories_renamed: int
    added: int

    @property
    def total(self) -> int:
        return (
            self.edited
            + self.metadata_changed
            + self.deleted
            + self.renamed
            + self.directories_renamed
            + self.added
        )


def change_dataset(tree: Tree, *, seed: int) -> Changes:
    """Change a bounded share of any tree, as a working day would; applications stay valid.

    About 2 % of the files, at least 8 where there are as many, at most 400. mtimes follow from
    the seed: a changed file (or directory) moves ahead of what it was.
    """
    rng = Random(f"{seed}:changes")
    entries = list(tree.walk())
    files = [path for path, entry in entries if stat.S_ISREG(entry.st_mode)]
    directories = [b"", *(path for path, entry in entries if stat.S_ISDIR(entry.st_mode))]
    share = min(max(len(files) // _CHANGED_DIVISOR, _FEWEST_CHANGES), _MOST_CHANGES)
    chosen = _choose_files(files, min(share, len(files) // 2), rng)
    few = max(1, len(chosen) // 5) if len(chosen) >= 4 else 0
    deleted, renamed, metadata = (
        [chosen.pop() for _ in range(few)],
        [chosen.pop() for _ in range(few)],
        [chosen.pop() for _ in range(few)],
    )
    for path in chosen:
        if not _edit_file(tree, path, rng):
            metadata.append(path)
    for path in metadata:
        _change_metadata(tree, path, rng)
    for path in deleted:
        with edit.advancing(tree, edit.parent(path), rng):
            tree.unlink(path)
    for path in renamed:
        _move(tree, path, rng.choice(directories), rng)
    return Changes(
        edited=len(set(chosen) - set(metadata)),
        metadata_changed=len(metadata),
        deleted=len(deleted),
        renamed=len(renamed),
        added=_add_entries(tree, directories, max(1, share // 4), rng),
        directories_renamed=_move_directory(
            tree, entries, min(share, (len(entries) - 1) // 2), rng
        ),
    )


def _choose_files(files: list[bytes], count: int, rng: Random) -> list[bytes]:
    """A sample that starts with one file of each application, so that these get edited."""
    chosen = {}
    for suffix in _APPLICATION_SUFFIXES:
        candidates = [path for path in files if path.endswith(suffix)]
        if candidates:
            chosen[rng.choice(candidates)] = True
    for path in rng.sample(files, count):
        chosen[path] = True
    return list(chosen)[:count]


def _edit_file(tree: Tree, path: bytes, rng: Random) -> bool:
    """Change the content; False for an application's file that this cannot change validly."""
    with edit.advancing(tree, path, rng):
        head = edit.read_range(tree, path, 0, len(_SQLITE_MAGIC))
        if head == _SQLITE_MAGIC:
            return _edit_sqlite(tree, path, rng)
        if head.startswith(_PARQUET_MAGIC):
            return _edit_parquet(tree, path, rng)
        size = tree.stat(path).st_size
        if head.startswith(_GZIP_MAGIC):  # one more member keeps the stream valid
            member = gzip.compress(rng.randbytes(rng.randrange(1, 5000)), mtime=0)
            edit.write_range(tree, path, size, member)
            return True
        kind = rng.choice(("append", "overwrite", "rewrite")) if size else "append"
        if kind == "append":
            edit.write_range(tree, path, size, rng.randbytes(rng.randrange(1, 5000)))
        elif kind == "overwrite":
            offset = rng.randrange(size)
            old = edit.read_range(tree, path, offset, rng.randrange(1, 4097))
            edit.write_range(tree, path, offset, bytes(byte ^ 0x5A for byte in old))
        else:
            edit.rewrite(tree, path, [rng.randbytes(rng.randrange(1, 20_000))])
        return True


def _edit_sqlite(tree: Tree, path: bytes, rng: Random) -> bool:
    """Insert rows, if the database is whole and nobody has it open."""
    if any(tree.exists(path + suffix) for suffix in (b"-wal", b"-journal")):
        return False
    name = bytes(tree.path) + b"/" + path
    try:
        with (
            edit.quiet(tree, edit.parent(path)),
            closing(sqlite3.connect(name)) as database,
            database,
        ):
            database.execute("CREATE TABLE IF NOT EXISTS drill_changes (id INTEGER, note TEXT)")
            rows = ((rng.randrange(2**32), rng.randbytes(20).hex()) for _ in range(100))
            database.executemany("INSERT INTO drill_changes VALUES (?, ?)", rows)
    except sqlite3.Error:
        return False
    return True


def _edit_parquet(tree: Tree, path: bytes, rng: Random) -> bool:
    """Write a new file of the same rows and some more, if this one can be read."""
    if tree.stat(path).st_size > _MAX_PARQUET_BYTES:
        return False
    try:
        with os.fdopen(tree.open(path, os.O_RDONLY), "rb") as file, tempfile.TemporaryFile() as new:
            old = pq.ParquetFile(file)
            note = {b"drill_change": rng.randbytes(8).hex().encode()}
            schema = old.schema_arrow
            schema = schema.with_metadata({**(schema.metadata or {}), **note})
            with pq.ParquetWriter(new, schema, compression="zstd") as writer:
                for group in [*range(old.num_row_groups), *range(min(1, old.num_row_groups))]:
                    writer.write_table(old.read_row_group(group).cast(schema))
            new.seek(0)
            edit.rewrite(tree, path, iter(lambda: new.read(edit.CHUNK_BYTES), b""))
    except pa.ArrowException:
        return False
    return True


def _change_metadata(tree: Tree, path: bytes, rng: Random) -> None:
    """Toggle a permission bit of group or others (never the owner's, who must go on reading)."""
    mode = stat.S_IMODE(tree.stat(path).st_mode)
    tree.chmod(path, mode ^ rng.choice((0o040, 0o020, 0o010, 0o004, 0o002, 0o001)))


def _move(tree: Tree, path: bytes, directory: bytes, rng: Random) -> None:
    target = edit.below(directory, edit.with_suffix(path, b".moved").rpartition(b"/")[2])
    target = edit.free_name(tree, target)
    with edit.advancing(tree, edit.parent(path), rng), edit.advancing(tree, directory, rng):
        tree.rename(path, target)


def _move_directory(
    tree: Tree, entries: list[tuple[bytes, os.stat_result]], limit: int, rng: Random
) -> int:
    """Move one directory that holds something, but not more than `limit` entries."""
    held = Counter(above for path, _ in entries for above in edit.directories_above(path))
    small = sorted(path for path, count in held.items() if path and count <= limit)
    small = [path for path in small if tree.stat(path).st_mode & stat.S_IWUSR]
    if not small:
        return 0
    path = rng.choice(small)
    outside = [
        directory
        for directory in sorted(held)
        if directory != path and not directory.startswith(path + b"/")
    ]
    _move(tree, path, rng.choice(outside), rng)
    return 1


def _add_entries(tree: Tree, directories: list[bytes], count: int, rng: Random) -> int:
    """Add `count` files, a directory with one more in it, an empty one, and a symlink."""

    def new(directory: bytes) -> bytes:
        return edit.free_name(tree, edit.below(directory, b"added-%08x" % rng.getrandbits(32)))

    def add(path: bytes, make: Callable[[bytes], None], mode: int | None) -> None:
        with edit.advancing(tree, edit.parent(path), rng):
            make(path)
            if mode is not None:
                tree.chmod(path, mode)
            moment = rng.randrange(OLDEST_MTIME_NS, NEWEST_MTIME_NS)
            tree.utime_ns(path, moment, moment)

    def file(path: bytes) -> None:
        tree.write(path, rng.randbytes(rng.randrange(20_000)))

    for _ in range(count):
        add(new(rng.choice(directories)), file, rng.choice(FILE_MODES))
    filled, empty = new(rng.choice(directories)), new(rng.choice(directories))
    add(filled, lambda path: tree.mkdir(path, 0o755), 0o755)
    add(filled + b"/file", file, 0o640)
    add(empty, lambda path: tree.mkdir(path, 0o755), 0o750)
    add(new(filled), lambda path: tree.symlink(b"file", path), None)
    return count + 4
