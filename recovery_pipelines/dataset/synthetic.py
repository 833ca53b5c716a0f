"""Synthetic data that looks like a data team's.

Everything in it follows from the seed: bytes, names, modes, owners and mtimes.
"""

import errno
import gzip
import itertools
import os
import sqlite3
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from random import Random
from typing import IO
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from recovery_pipelines.dataset.common import (
    FILE_MODES,
    NEWEST_MTIME_NS,
    OLDEST_MTIME_NS,
    require_empty,
)
from recovery_pipelines.faults import edit
from recovery_pipelines.sandbox import Tree

_PARQUET_SHARE = 0.40
_BINARY_SHARE = 0.20
_CSV_SHARE = 0.10
_JSON_SHARE = 0.10
_SQLITE_SHARE = 0.08
_GZIP_SHARE = 0.06
_SMALL_FILES_SHARE = 0.06

_MIB = 1 << 20
_MEAN_SMALL_FILE_BYTES = 3000
_MAX_SMALL_FILES = 250_000
_MAX_SQLITE_BYTES = 512 * _MIB
_EPOCH_2020_SECONDS = 1_577_836_800
_DAY_SECONDS = 86_400

_DIRECTORIES = (
    b"app",
    b"awkward",
    b"awkward/dir [with] spaces\n*",
    b"deep/" + b"/".join(b"level-%02d" % level for level in range(12)),
    b"empty",
    b"empty/nested",
    b"exports",
    b"links",
    b"logs",
    b"models",
    b"outbox",
    b"people/analyst",
    b"people/service",
    b"scratch",
    b"warehouse/customers",
    b"warehouse/events",
    b"warehouse/orders",
)
_AWKWARD_NAMES = (
    b"-leading-dash",
    b"--help",
    b" spaces  around ",
    b"new\nline",
    b"tab\tand\rreturn",
    b"non-utf8-\xff\xfe.txt",
    b"latin1-caf\xe9",
    "ünï-✓-日本".encode(),
    b"[glob]*?\\{a,b}",
    b"*",
    b"\\",
    b"quote'\"`$(true);&|",
    b"~",
    b"#comment",
    b"...",
    b".hidden",
    b"long-" + b"n" * 220,
)
_DIRECTORY_MODES = {
    b"": 0o755,
    b"empty/nested": 0o700,
    b"exports": 0o2775,
    b"outbox": 0o1777,
    b"people": 0o2755,
    b"people/analyst": 0o750,
    b"people/service": 0o700,
    b"warehouse": 0o2775,
    b"warehouse/customers": 0o2775,
    b"warehouse/events": 0o2770,
    b"warehouse/orders": 0o2775,
}
_OWNERS = {b"people/service": 65534, b"people/analyst": 1000}
_CANNOT = (
    errno.EOPNOTSUPP,  # the file system does not know it
    errno.EPERM,  # the user may not
    errno.EINVAL,  # the container does not know the user id
)

_ACL_ACCESS = "system.posix_acl_access"
_ACL_DEFAULT = "system.posix_acl_default"


def build_dataset(tree: Tree, *, size_bytes: int, seed: int) -> tuple[str, ...]:
    """Fill the empty `tree` with about `size_bytes` (1 MB and more) of synthetic data.

    Returns what had to be left out because the file system or the user cannot hold it: any of
    "access control lists", "extended attributes", "non-UTF-8 names", "other owners".
    The same seed and size give the same bytes and metadata for the same user on the same machine.
    """
    require_empty(tree)
    for directory in _DIRECTORIES:
        _make_directories(tree, directory)
    for part, share in (
        (_tables, _PARQUET_SHARE),
        (_binaries, _BINARY_SHARE),
        (_csv_exports, _CSV_SHARE),
        (_json_lines, _JSON_SHARE),
        (_database, _SQLITE_SHARE),
        (_logs, _GZIP_SHARE),
    ):
        part(tree, _numbers(seed, part.__name__), int(size_bytes * share))
    _small_files(tree, Random(f"{seed}:small"), int(size_bytes * _SMALL_FILES_SHARE))
    _sparse_files(tree, Random(f"{seed}:sparse"))
    left_out = _awkward_names(tree, Random(f"{seed}:awkward"))
    _links(tree)
    left_out += _metadata(tree, Random(f"{seed}:metadata"))
    return tuple(sorted(left_out))


def _make_directories(tree: Tree, path: bytes) -> None:
    for above in itertools.accumulate(path.split(b"/"), lambda left, right: left + b"/" + right):
        if not tree.exists(above):
            tree.mkdir(above, 0o755)


def _numbers(seed: int, part: str) -> np.random.Generator:
    return np.random.default_rng([seed & (2**64 - 1), crc32(part.encode())])


def _create(tree: Tree, path: bytes) -> IO[bytes]:
    return os.fdopen(tree.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), "w+b")


def _parts(budget_bytes: int, part_bytes: int, at_least: int) -> list[int]:
    """The sizes of the files that share a budget."""
    count = max(at_least, -(-budget_bytes // part_bytes))
    return [budget_bytes // count] * count


def _words(rng: np.random.Generator, rows: int, words: tuple[str, ...]) -> pa.Array:
    return pa.array(words).take(pa.array(rng.integers(0, len(words), rows)))


def _moments(rng: np.random.Generator, rows: int) -> pa.Array:
    seconds = _EPOCH_2020_SECONDS + rng.integers(0, 1400 * _DAY_SECONDS, rows)
    return pa.array(np.sort(seconds) * 1_000_000, pa.timestamp("us"))


def _orders(rng: np.random.Generator, rows: int) -> pa.Table:
    note = _words(rng, rows, ("gift", "express", "call before delivery", "fragile, keep dry"))
    return pa.table(
        {
            "order_id": rng.integers(0, 2**40, rows),
            "customer_id": rng.integers(0, 5_000_000, rows, dtype=np.int32),
            "amount": np.round(rng.gamma(2.0, 40.0, rows), 2),
            "currency": _words(rng, rows, ("EUR", "USD", "GBP", "JPY", "CHF")),
            "placed_at": _moments(rng, rows),
            "note": pa.compute.if_else(pa.array(rng.random(rows) < 0.2), note, None),
        }
    )


def _customers(rng: np.random.Generator, rows: int) -> pa.Table:
    return pa.table(
        {
            "customer_id": rng.integers(0, 5_000_000, rows),
            "country": _words(rng, rows, ("DE", "FR", "US", "JP", "BR", "IN", "ZA")),
            "score": rng.standard_normal(rows),
            "active": rng.random(rows) < 0.7,
            "since": _moments(rng, rows),
        }
    )


def _events(rng: np.random.Generator, rows: int) -> pa.Table:
    return pa.table(
        {
            "at": _moments(rng, rows),
            "level": _words(rng, rows, ("INFO", "INFO", "INFO", "DEBUG", "WARNING", "ERROR")),
            "service": _words(rng, rows, ("checkout", "search", "billing", "ingest", "auth")),
            "request": rng.integers(0, 2**63, rows),
            "seconds": np.round(rng.exponential(0.2, rows), 6),
            "message": _words(
                rng, rows, ("request done", "cache miss", "retrying upstream", "slow query")
            ),
        }
    )


_TableMaker = Callable[[np.random.Generator, int], pa.Table]


def _batches(
    make: _TableMaker, rng: np.random.Generator, file: IO[bytes], size_bytes: int
) -> Iterator[pa.Table]:
    """Tables to write until the file is about full: at least a few, none over 100 000 rows."""
    rows = min(100_000, max(50, size_bytes // 400))
    while file.tell() < size_bytes:
        yield make(rng, rows)


def _tables(tree: Tree, rng: np.random.Generator, budget_bytes: int) -> None:
    for directory, make, share in (
        (b"warehouse/orders", _orders, 0.5),
        (b"warehouse/customers", _customers, 0.2),
        (b"warehouse/events", _events, 0.3),
    ):
        for number, size in enumerate(_parts(int(budget_bytes * share), 64 * _MIB, 2)):
            with _create(tree, b"%s/part-%05d.parquet" % (directory, number)) as file:
                schema = make(rng, 1).schema
                with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                    for table in _batches(make, rng, file, size):
                        writer.write_table(table)


def _binaries(tree: Tree, rng: np.random.Generator, budget_bytes: int) -> None:
    for number, size in enumerate(_parts(budget_bytes, 2048 * _MIB, 1)):
        with _create(tree, b"models/weights-%02d.bin" % number) as file:
            for offset in range(0, size, _MIB):
                file.write(rng.bytes(min(_MIB, size - offset)))


def _csv_exports(tree: Tree, rng: np.random.Generator, budget_bytes: int) -> None:
    for number, size in enumerate(_parts(budget_bytes, 256 * _MIB, 3)):
        with _create(tree, b"exports/orders-%d.csv" % (2020 + number)) as file:
            for table in _batches(_orders, rng, file, size):
                header = pa_csv.WriteOptions(include_header=file.tell() == 0)
                pa_csv.write_csv(table, file, header)


def _json_lines(tree: Tree, rng: np.random.Generator, budget_bytes: int) -> None:
    for number, size in enumerate(_parts(budget_bytes, 256 * _MIB, 3)):
        with _create(tree, b"exports/customers-%02d.jsonl" % number) as file:
            for table in _batches(_customers, rng, file, size):
                frame = table.to_pandas()
                text = frame.to_json(orient="records", lines=True, date_format="iso")
                file.write(text.encode())


def _database(tree: Tree, rng: np.random.Generator, budget_bytes: int) -> None:
    budget_bytes = min(budget_bytes, _MAX_SQLITE_BYTES)
    rows = min(20_000, max(50, budget_bytes // 600))
    path = tree.path / "app" / "shop.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            "PRAGMA page_size = 4096; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE customers (id INTEGER PRIMARY KEY, country TEXT, score REAL);"
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, amount REAL,"
            " currency TEXT, note TEXT);"
            "CREATE TABLE blobs (name TEXT PRIMARY KEY, content BLOB);"
            "CREATE INDEX orders_by_customer ON orders (customer_id);"
        )
        while path.stat().st_size < budget_bytes:
            customers = _customers(rng, rows).select(["country", "score"])
            database.executemany(
                "INSERT INTO customers (country, score) VALUES (?, ?)",
                zip(*customers.to_pydict().values(), strict=True),
            )
            orders = _orders(rng, rows).select(["customer_id", "amount", "currency", "note"])
            database.executemany(
                "INSERT INTO orders (customer_id, amount, currency, note) VALUES (?, ?, ?, ?)",
                zip(*orders.to_pydict().values(), strict=True),
            )
            blob = rng.bytes(1000)
            database.execute("INSERT INTO blobs VALUES (?, ?)", (blob[:8].hex(), blob))
            database.commit()


def _logs(tree: Tree, rng: np.random.Generator, budget_bytes: int) -> None:
    plain = pa_csv.WriteOptions(include_header=False, delimiter=" ")
    for number, size in enumerate(_parts(budget_bytes, 16 * _MIB, 3)):
        with (
            _create(tree, b"logs/service-%05d.log.gz" % number) as file,
            gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as stream,
        ):
            for table in _batches(_events, rng, file, size):
                pa_csv.write_csv(table, stream, plain)
                stream.flush()


def _small_files(tree: Tree, rng: Random, budget_bytes: int) -> None:
    count = min(_MAX_SMALL_FILES, max(30, budget_bytes // _MEAN_SMALL_FILE_BYTES))
    mean = min(budget_bytes / count, 20 * _MEAN_SMALL_FILE_BYTES)
    for number in range(count):
        if number % 250 == 0:
            directory = b"small/%04d" % (number // 250)
            _make_directories(tree, directory)
        size = int(rng.expovariate(1 / mean))
        text = rng.randbytes(-(-size // 2)).hex().encode()[:size]
        tree.write(b"%s/note-%06d.txt" % (directory, number), text)
    tree.write(b"small/empty.txt", b"")
    for directory in _OWNERS:
        for number in range(5):
            tree.write(directory + b"/file-%d" % number, rng.randbytes(rng.randrange(1, 3000)))


def _sparse_files(tree: Tree, rng: Random) -> None:
    """One file mostly of holes (its last bytes too), two with zeros that are really written."""
    with _create(tree, b"scratch/sparse.img") as file:
        for offset in (0, 4 * _MIB):
            file.seek(offset)
            file.write(rng.randbytes(10_000))
        file.truncate(8 * _MIB)
    for name in (b"scratch/zeros-1.img", b"scratch/zeros-2.img"):
        tree.write(name, bytes(32_768) + rng.randbytes(10_000))


def _awkward_names(tree: Tree, rng: Random) -> list[str]:
    left_out = set()
    for number, name in enumerate(_AWKWARD_NAMES):
        directory = b"awkward" if number % 3 else b"awkward/dir [with] spaces\n*"
        try:
            tree.write(directory + b"/" + name, rng.randbytes(rng.randrange(1, 2000)))
        except OSError as error:
            if error.errno not in (errno.EILSEQ, errno.EINVAL):
                raise
            left_out.add("non-UTF-8 names")
    tree.write(_DIRECTORIES[3] + b"/bottom.txt", rng.randbytes(100))
    return list(left_out)


def _links(tree: Tree) -> None:
    tree.symlink(b"../warehouse/orders/part-00000.parquet", b"links/newest")
    tree.symlink(b"../small", b"links/directory")
    tree.symlink(b"../nowhere/file", b"links/dangling")
    tree.symlink(b"/nonexistent/absolute", b"links/absolute")
    tree.symlink("entw\u00fcrfe\n*".encode(), b"links/awkward target")
    tree.link(b"small/0000/note-000000.txt", b"links/hard-1")
    tree.link(b"small/0000/note-000000.txt", b"people/hard-2")
    tree.link(b"exports/customers-00.jsonl", b"links/hard.jsonl")


def _metadata(tree: Tree, rng: Random) -> list[str]:
    """xattrs, owners, modes, ACLs and mtimes, in the order in which none undoes another."""
    left_out = []
    entries = list(tree.walk())
    if not _optional(lambda: _xattrs(tree, rng)):
        left_out.append("extended attributes")
    has_others = _optional(lambda: _owners(tree))
    if not has_others:
        left_out.append("other owners")
    modes = {
        path: _DIRECTORY_MODES.get(path, 0o755)
        if stat.S_ISDIR(entry.st_mode)
        else rng.choice(FILE_MODES)
        for path, entry in entries
        if not stat.S_ISLNK(entry.st_mode)
    }
    for path, mode in {b"": _DIRECTORY_MODES[b""], **modes}.items():
        tree.chmod(path, mode)
    if not _optional(lambda: _access_control_lists(tree, has_others)):
        left_out.append("access control lists")
    elif not has_others:
        left_out.append("access control lists for other users")
    for path in [*(path for path, _ in reversed(entries)), b""]:
        moment = rng.randrange(OLDEST_MTIME_NS, NEWEST_MTIME_NS)
        tree.utime_ns(path, moment, moment)
    return left_out


def _optional(action: Callable[[], None]) -> bool:
    """Whether it could be done here; if not, nothing was."""
    try:
        action()
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def _owners(tree: Tree) -> None:
    for directory, owner in _OWNERS.items():
        for name in (directory, *(edit.below(directory, n) for n in tree.listdir(directory))):
            tree.chown(name, owner, owner)


def _xattrs(tree: Tree, rng: Random) -> None:
    tree.setxattr(b"warehouse", "user.owner", b"data-platform")
    tree.setxattr(b"exports/orders-2020.csv", "user.comment", "réviewed ✓".encode())
    tree.setxattr(b"exports/orders-2021.csv", "user.binary", rng.randbytes(300))
    tree.setxattr(b"small/0000/note-000001.txt", "user.empty", b"")
    for number in range(2, 7):
        name = b"small/0000/note-%06d.txt" % number
        tree.setxattr(name, "user.checksum", rng.randbytes(16).hex().encode())


def _access_control_lists(tree: Tree, has_others: bool) -> None:
    """An ordinary user's tools restore in a user namespace, which knows that user alone."""

    def user(number: int) -> int:
        return number if has_others else os.geteuid()

    tree.setxattr(b"people", _ACL_DEFAULT, _acl(owner=7, user_id=user(65534), user=5, group=5))
    tree.setxattr(b"people", _ACL_ACCESS, _acl(owner=7, user_id=user(65534), user=5, group=5))
    for number, name in enumerate((b"app/shop.db", b"exports/orders-2020.csv", b"empty")):
        acl = _acl(owner=7, user_id=user(1000 + number), user=6, group=4)
        tree.setxattr(name, _ACL_ACCESS, acl)
    for number in range(5, 10):
        name = b"small/0000/note-%06d.txt" % number
        tree.setxattr(name, _ACL_ACCESS, _acl(owner=6, user_id=user(1000), user=4, group=0))


def _acl(*, owner: int, user_id: int, user: int, group: int) -> bytes:
    """A POSIX ACL as the kernel's xattr: owner, one named user, group, mask, nobody else.

    Layout (linux/posix_acl_xattr.h): version 2, then (tag u16, permissions u16, id u32) each.
    """
    no_id = 0xFFFFFFFF
    rows = (
        (0x01, owner, no_id),
        (0x02, user, user_id),
        (0x04, group, no_id),
        (0x10, group | user, no_id),
        (0x20, 0, no_id),
    )
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)
