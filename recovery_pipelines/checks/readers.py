"""The applications of file data: SQLite databases, Parquet tables and gzip streams.

A file is recognised by its content. Its facts are one line of text that says what its application
reads from it, equal before and after if and only if the data is; each reader works in bounded
memory and raises if the application cannot work with the file.
"""

import errno
import gzip
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from recovery_pipelines.databases.sqlite import quoted, rows_digest, tables
from recovery_pipelines.sandbox import Tree

_MAGIC_BYTES = 16
_FILES_PER_TASK = 64
_ERROR_LENGTH = 200
_CHUNK_BYTES = 1 << 20
_BATCH_ROWS = 1 << 16
_SQLITE_PATH_LIMIT_BYTES = 480
_OUR_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}


class Look(NamedTuple):
    """What one look at a file showed; all None for a file that is of no known application."""

    application: str | None = None
    application_facts: str | None = None
    """What the application reads from the file, as one comparable line."""
    application_error: str | None = None
    """Why the application cannot work with the file, or why we could not look."""


NO_APPLICATION = Look()


def application_of(head: bytes) -> str | None:
    """The application whose files begin like `head` (16 bytes, fewer only of a shorter file)."""
    for name, (magic, _) in _APPLICATIONS.items():
        if head.startswith(magic):
            return name
    return None


def look_at(tree: Tree, path: bytes) -> Look:
    """Recognise the application of a file by its first bytes, and let it read the file.

    Raises OSError if we lack descriptors, memory or disk space to find out.
    """
    application = None
    try:
        with os.fdopen(tree.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            application = application_of(file.read(_MAGIC_BYTES))
            if application is None:
                return NO_APPLICATION
            file.seek(0)
            _, reader = _APPLICATIONS[application]
            return Look(application, reader(file, tree, path))
    except MemoryError:
        raise
    except Exception as error:  # readers raise nearly anything on damaged or hostile files
        if isinstance(error, OSError) and error.errno in _OUR_SHORTAGES:
            raise
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Look(application, None, f"{type(error).__name__}: {text[:_ERROR_LENGTH]}")


def look_at_all(tree: Tree, paths: Sequence[bytes]) -> Iterator[Look]:
    """`look_at` each path, in order, on all cores (the readers release the interpreter's lock)."""

    def look_at_batch(start: int) -> list[Look]:
        return [look_at(tree, path) for path in paths[start : start + _FILES_PER_TASK]]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for looks in pool.map(look_at_batch, range(0, len(paths), _FILES_PER_TASK)):
            yield from looks


def _gzip_facts(file: BinaryIO, tree: Tree, path: bytes) -> str:
    digest, size_bytes = xxhash.xxh3_128(), 0
    with gzip.GzipFile(fileobj=file) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return f"{size_bytes} bytes, digest {digest.hexdigest()}"


def _sqlite_facts(file: BinaryIO, tree: Tree, path: bytes) -> str:
    with ExitStack() as stack:
        address = stack.enter_context(_sqlite_address(file, tree, path))
        connection = stack.enter_context(
            closing(sqlite3.connect(address, uri=True, isolation_level=None))
        )
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        connection.execute("PRAGMA trusted_schema = OFF")
        problems = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
        if problems != ["ok"]:
            raise sqlite3.DatabaseError(f"integrity_check: {'; '.join(map(str, problems))}")
        schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema")
        parts = [f"schema {rows_digest(schema)}"]
        for name in tables(connection):
            rows = connection.execute(f"SELECT * FROM {quoted(name)}")
            parts.append(f"{name!a} {rows_digest(rows)}")
    return "; ".join(parts)


@contextmanager
def _sqlite_address(file: BinaryIO, tree: Tree, path: bytes) -> Iterator[str]:
    """Where SQLite can open the database without writing to the tree.

    A database with a live journal is opened in a copy, where SQLite may recover it as the real
    application would; so is one whose path is too long for SQLite.
    """
    sidecars = [name for name in (b"-wal", b"-journal") if _size_bytes(tree, path + name)]
    length_bytes = len(os.fsencode(tree.path)) + len(path)
    if not sidecars and length_bytes < _SQLITE_PATH_LIMIT_BYTES:
        yield f"file:/proc/self/fd/{file.fileno()}?mode=ro&immutable=1"
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "database"
        for suffix in (b"", *sidecars):
            target = Path(f"{copy}{suffix.decode()}")
            descriptor = tree.open(path + suffix, os.O_RDONLY)
            with os.fdopen(descriptor, "rb") as source, target.open("wb") as sink:
                copyfileobj(source, sink, _CHUNK_BYTES)
        yield f"file:{quote(str(copy))}?mode=rw"


def _size_bytes(tree: Tree, path: bytes) -> int:
    try:
        return tree.stat(path).st_size
    except FileNotFoundError:
        return 0


def _parquet_facts(file: BinaryIO, tree: Tree, path: bytes) -> str:
    with pa.OSFile(f"/proc/self/fd/{file.fileno()}") as native:
        table = pq.ParquetFile(native, page_checksum_verification=True)
        digest = xxhash.xxh3_128(str(table.schema_arrow.remove_metadata()).encode())
        row_count = 0
        for group in range(table.num_row_groups):
            ranges = [_Range() for _ in table.schema_arrow]
            for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], use_threads=False):
                row_count += batch.num_rows
                for column, decoded in zip(batch.columns, ranges, strict=True):
                    for buffer in _canonical_buffers(column):
                        digest.update(buffer)
                    decoded.add(column)
            _check_statistics(table, group, ranges)
        if row_count != table.metadata.num_rows:
            raise ValueError(f"{row_count} rows decoded, {table.metadata.num_rows} recorded")
    return f"{row_count} rows in {table.num_row_groups} row groups, digest {digest.hexdigest()}"


def _canonical_buffers(column: pa.Array) -> Iterator[memoryview]:
    """Bytes that are equal if and only if the values are (those beneath nulls are left out)."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_nested(column.type):
        column = pa.array([repr(value) for value in column.to_pylist()], pa.large_string())
    for part in (column.is_null(), column.drop_null()):
        yield memoryview(pa.record_batch([part], ["values"]).serialize())


class _Range:
    """Smallest and largest value and number of nulls of one decoded column chunk."""

    def __init__(self) -> None:
        self.nulls = 0
        self.values: list[object] = []

    def add(self, column: pa.Array) -> None:
        self.nulls += column.null_count
        if _has_comparable_statistics(column.type):
            extremes = pc.min_max(column).as_py()
            self.values += [value for value in extremes.values() if value is not None]


def _has_comparable_statistics(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_string(kind))


def _check_statistics(table: pq.ParquetFile, group: int, ranges: list[_Range]) -> None:
    """The recorded statistics must agree with what was decoded (they may be wider)."""
    fields = {field.name: (index, field.type) for index, field in enumerate(table.schema_arrow)}
    recorded = table.metadata.row_group(group)
    for number in range(recorded.num_columns):
        chunk = recorded.column(number)
        index, kind = fields.get(chunk.path_in_schema, (0, pa.list_(pa.null())))
        statistics = chunk.statistics
        if statistics is None or pa.types.is_nested(kind):
            continue
        decoded = ranges[index]
        if statistics.has_null_count and statistics.null_count != decoded.nulls:
            raise ValueError(
                f"column {chunk.path_in_schema!a}: {decoded.nulls} nulls decoded, "
                f"{statistics.null_count} recorded"
            )
        if statistics.has_min_max and _has_comparable_statistics(kind):
            low, high = statistics.min, statistics.max
            if any(value < low or value > high for value in decoded.values):
                raise ValueError(
                    f"column {chunk.path_in_schema!a}: values decoded outside of the recorded range"
                )


_APPLICATIONS: dict[str, tuple[bytes, Callable[[BinaryIO, Tree, bytes], str]]] = {
    "sqlite": (b"SQLite format 3\0", _sqlite_facts),
    "parquet": (b"PAR1", _parquet_facts),
    "gzip": (b"\x1f\x8b\x08", _gzip_facts),
}
