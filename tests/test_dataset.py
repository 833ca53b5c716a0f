"""Synthetic data is what it says and follows from its seed; copies are faithful; changes valid."""

import gzip
import json
import os
import sqlite3
import stat
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from recovery_pipelines import manifest
from recovery_pipelines.dataset import Changes, build_dataset, change_dataset, copy_tree
from recovery_pipelines.errors import DrillTimeout, PreparationError
from recovery_pipelines.faults.base import Layer
from recovery_pipelines.faults.catalogue import inject, source_faults
from recovery_pipelines.sandbox import Sandbox, Tree
from tests.nobody import as_nobody

MB = 10**6


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox.create(tmp_path / "home", "data") as made:
        yield made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """Small data for tests that only read it."""
    with Sandbox.create(tmp_path_factory.mktemp("home"), "data") as made:
        tree = made.tree("live")
        build_dataset(tree, size_bytes=2 * MB, seed=7)
        yield tree


def captured(tree: Tree) -> Path:
    path = tree.path.parent / f"{tree.path.name}.parquet"
    assert manifest.capture(tree.path, path).complete
    return path


def differences(one: Tree, other: Tree) -> list[dict[str, object]]:
    compared = manifest.compare(captured(one), captured(other))
    assert compared.undecided == 0
    assert compared.entries > 1
    return compared.differences.to_pylist()


def open_database(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path.as_uri() + "?immutable=1", uri=True)


def applications_work(tree: Tree) -> dict[str, int]:
    """Open every SQLite database, Parquet file and gzip stream by its real library."""
    count: dict[str, int] = defaultdict(int)
    for path, entry in tree.walk():
        if not stat.S_ISREG(entry.st_mode):
            continue
        head, name = tree.read(path)[:16], tree.path / os.fsdecode(path)
        if head.startswith(b"SQLite format 3"):
            with closing(open_database(name)) as database:
                assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            count["sqlite"] += 1
        elif head.startswith(b"PAR1"):
            assert pq.read_table(name).num_rows > 0
            count["parquet"] += 1
        elif head.startswith(b"\x1f\x8b"):
            assert gzip.decompress(tree.read(path))
            count["gzip"] += 1
    return dict(count)


# --- synthetic data ---------------------------------------------------------------------------


def test_the_seed_decides_every_byte_and_all_metadata(sandbox: Sandbox) -> None:
    first, again, other = (sandbox.tree(name) for name in ("first", "again", "other"))
    for tree, seed in ((first, 1), (again, 1), (other, 2)):
        build_dataset(tree, size_bytes=MB, seed=seed)
    assert differences(first, again) == []
    assert {row["kind"] for row in differences(first, other)} >= {"content", "mode", "mtime"}


@pytest.mark.parametrize("size_bytes", [MB, 8 * MB, 40 * MB])
def test_sizes(sandbox: Sandbox, size_bytes: int) -> None:
    tree = sandbox.tree("live")
    build_dataset(tree, size_bytes=size_bytes, seed=1)
    used: dict[bytes, int] = defaultdict(int)
    for path, entry in tree.walk():
        if stat.S_ISREG(entry.st_mode) and entry.st_nlink == 1 and b"scratch" not in path:
            used[path.split(b"/")[0]] += entry.st_size
    total = sum(used.values())
    assert 0.85 * size_bytes < total < 1.2 * size_bytes
    assert 0.5 < (used[b"warehouse"] + used[b"models"]) / total < 0.7


def test_more_data_has_more_files(sandbox: Sandbox) -> None:
    counts = []
    for size_bytes in (MB, 10 * MB, 30 * MB):
        tree = sandbox.tree(f"of-{size_bytes}")
        build_dataset(tree, size_bytes=size_bytes, seed=1)
        counts.append(sum(1 for _ in tree.walk()))
    assert counts[0] < counts[1] < counts[2]


def test_applications_of_a_data_team_are_there_and_work(data: Tree) -> None:
    assert applications_work(data) == {"sqlite": 1, "parquet": 6, "gzip": 3}
    parquet = pq.ParquetFile(data.path / "warehouse/orders/part-00000.parquet").metadata
    assert parquet.num_row_groups >= 2
    assert all(
        parquet.row_group(group).column(0).statistics.has_min_max
        for group in range(parquet.num_row_groups)
    )
    with closing(
        sqlite3.connect((data.path / "app/shop.db").as_uri() + "?immutable=1", uri=True)
    ) as db:
        kinds = [kind for (kind,) in db.execute("SELECT type FROM sqlite_schema")]
        assert kinds.count("table") >= 3
        assert db.execute("SELECT count(*) FROM orders").fetchone()[0] > 100
        assert "orders_by_customer" in str(db.execute("SELECT * FROM sqlite_schema").fetchall())
    assert len(pd.read_csv(data.path / "exports/orders-2020.csv")) > 100
    lines = (data.path / "exports/customers-00.jsonl").read_text().splitlines()
    assert all(json.loads(line)["country"] for line in lines)


def _is_sparse(tree: Tree) -> bool:
    entry = tree.stat(b"scratch/sparse.img")
    return entry.st_blocks * 512 < entry.st_size / 4


FEATURES: dict[str, Callable[[Tree, dict[bytes, os.stat_result]], bool]] = {
    "empty directory": lambda tree, entries: any(
        stat.S_ISDIR(e.st_mode) and not tree.listdir(p) for p, e in entries.items()
    ),
    "relative symlink": lambda tree, entries: (
        tree.exists(b"warehouse/orders/part-00000.parquet")
        and tree.readlink(b"links/newest") == b"../warehouse/orders/part-00000.parquet"
    ),
    "dangling symlink": lambda tree, entries: not (tree.path / "links/dangling").exists(),
    "hard links in two directories": lambda tree, entries: (
        entries[b"links/hard-1"].st_ino == entries[b"people/hard-2"].st_ino
        and entries[b"links/hard-1"].st_nlink == 3
    ),
    "sparse file": lambda tree, entries: _is_sparse(tree),
    "set-gid directory": lambda tree, entries: bool(entries[b"warehouse"].st_mode & stat.S_ISGID),
    "sticky directory": lambda tree, entries: bool(entries[b"outbox"].st_mode & stat.S_ISVTX),
    "modes 0600, 0755, 0444": lambda tree, entries: (
        {0o600, 0o755, 0o444} <= {stat.S_IMODE(e.st_mode) for e in entries.values()}
    ),
    "mtimes in the past, with nanoseconds": lambda tree, entries: (
        all(
            e.st_mtime < 1.8e9 and (e.st_mtime_ns % 1000 or e.st_mtime_ns % 10**6)
            for e in [*entries.values(), tree.stat(b"")]
            if e.st_mtime_ns % 1000
        )
        and len({e.st_mtime_ns for e in entries.values()}) > 0.9 * len(entries)
    ),
    "non-UTF-8 name": lambda tree, entries: any(b"\xff" in path for path in entries),
    "newline in a name": lambda tree, entries: any(b"\n" in path for path in entries),
    "leading dash": lambda tree, entries: any(b"/-" in path for path in entries),
    "glob characters": lambda tree, entries: any(b"[glob]*?\\" in path for path in entries),
    "name of 200 bytes": lambda tree, entries: any(
        len(path.split(b"/")[-1]) > 200 for path in entries
    ),
    "empty file": lambda tree, entries: any(
        stat.S_ISREG(e.st_mode) and e.st_size == 0 for e in entries.values()
    ),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_feature(data: Tree, feature: str) -> None:
    assert FEATURES[feature](data, dict(data.walk()))


def test_what_cannot_be_held_is_named(sandbox: Sandbox) -> None:
    """Each optional feature is either there or in the list of what was left out."""
    tree = sandbox.tree("live")
    left_out = build_dataset(tree, size_bytes=MB, seed=1)
    entries = dict(tree.walk())
    names = {path: tree.listxattr(path) for path in entries}
    has_others = len({e.st_uid for e in entries.values() if stat.S_ISREG(e.st_mode)}) > 1
    there = {
        "extended attributes": any("user.checksum" in found for found in names.values()),
        "access control lists": any("system.posix_acl_access" in found for found in names.values()),
        "access control lists for other users": has_others,
        "non-UTF-8 names": any(b"\xff" in path for path in entries),
        "other owners": has_others,
    }
    assert {feature for feature, found in there.items() if not found} == set(left_out)


def test_a_filled_directory_is_refused(sandbox: Sandbox) -> None:
    tree = sandbox.tree("live")
    tree.write(b"precious", b"data")
    with pytest.raises(PreparationError, match="not empty"):
        build_dataset(tree, size_bytes=MB, seed=1)
    assert tree.read(b"precious") == b"data"


def test_an_ordinary_user_can_build_change_and_damage(open_path: Path) -> None:
    def everything() -> None:
        with Sandbox.create(open_path, "data") as made:
            tree = made.tree("live")
            left_out = build_dataset(tree, size_bytes=MB, seed=1)
            assert left_out == ("access control lists for other users", "other owners")
            for seed in range(5):
                change_dataset(tree, seed=seed)
                applications_work(tree)
            damaged = made.tree("damaged")
            build_dataset(damaged, size_bytes=MB, seed=1)
            faults = source_faults()
            done = {fault.kind for fault in inject([*faults.values()], damaged, Layer.SOURCE, 1)}
            assert set(faults) - done == {"chown", "owner_access_lost"}

    as_nobody(everything)


# --- copies -----------------------------------------------------------------------------------


def test_a_copy_is_faithful(sandbox: Sandbox, data: Tree) -> None:
    copy = sandbox.tree("copy")
    copy_tree(data.path, copy, timeout_seconds=60)
    assert differences(data, copy) == []
    assert _is_sparse(copy)


def test_what_cannot_be_copied_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    tree = sandbox.tree("copy")
    file = tmp_path / "file"
    file.write_text("x")
    link = tmp_path / "link"
    link.symlink_to(tree.path)
    for source, message in (
        (tmp_path / "missing", "not a directory"),
        (file, "not a directory"),
        (tmp_path, "in one another"),
        (tree.path, "in one another"),
        (link, "in one another"),
        (Path("/"), "in one another"),
    ):
        with pytest.raises(PreparationError, match=message):
            copy_tree(source, tree, timeout_seconds=60)
        assert list(tree.walk()) == []
    tree.write(b"precious", b"data")
    with pytest.raises(PreparationError, match="not empty"):
        copy_tree(Path(__file__).parent, tree, timeout_seconds=60)


def test_copying_stops_in_time(sandbox: Sandbox, data: Tree) -> None:
    with pytest.raises(DrillTimeout, match="cp"):
        copy_tree(data.path, sandbox.tree("copy"), timeout_seconds=0.0001)


def test_a_source_that_cannot_be_read_in_full_is_an_error(open_path: Path) -> None:
    def copy() -> None:
        source = open_path / "source"
        source.mkdir()
        (source / "readable").write_text("x")
        (source / "secret").write_text("x")
        (source / "secret").chmod(0)
        home = open_path / "home"
        with Sandbox.create(home, "copy") as made, pytest.raises(PreparationError, match="secret"):
            copy_tree(source, made.tree("copy"), timeout_seconds=60)

    as_nobody(copy)


# --- changes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_changes_are_seeded_bounded_and_leave_applications_valid(
    sandbox: Sandbox, data: Tree, seed: int
) -> None:
    before, one, other = (sandbox.tree(name) for name in ("before", "one", "other"))
    for tree in (before, one, other):
        copy_tree(data.path, tree, timeout_seconds=60)
    for day in range(3):
        done = change_dataset(one, seed=10 * seed + day)
        assert change_dataset(other, seed=10 * seed + day) == done
        assert min(done.edited, done.deleted, done.renamed, done.added) >= 1
        assert done.directories_renamed == 1
    assert differences(one, other) == []
    found = differences(before, one)
    assert {row["kind"] for row in found} >= {"content", "missing", "unexpected", "mtime"}
    kinds = applications_work(one)
    assert set(kinds) == {"sqlite", "parquet", "gzip"}
    change_dataset(other, seed=999)
    assert differences(one, other) != []


@pytest.mark.parametrize("files", [0, 1, 2, 5, 40, 3000])
def test_changes_on_any_tree(sandbox: Sandbox, files: int) -> None:
    tree = sandbox.tree("live")
    for number in range(files):
        if number % 50 == 0:
            tree.mkdir(b"d%d" % number, 0o755)
        tree.write(b"d%d/f%d" % (number - number % 50, number), b"content %d" % number)
        tree.chmod(b"d%d/f%d" % (number - number % 50, number), 0o400)
    before = dict(tree.walk())
    done = change_dataset(tree, seed=1)
    touched = done.edited + done.metadata_changed + done.deleted + done.renamed
    assert min(files // 2, 4) <= touched <= max(8, files // 50)
    kept = set(before) & set(dict(tree.walk()))
    assert len(kept) >= len(before) // 2
    assert done.added >= 5


def test_every_change_moves_an_mtime_ahead_but_not_far(sandbox: Sandbox, data: Tree) -> None:
    tree = sandbox.tree("live")
    copy_tree(data.path, tree, timeout_seconds=60)
    before = {path: entry.st_mtime_ns for path, entry in tree.walk()}
    change_dataset(tree, seed=3)
    moved = {
        path: entry.st_mtime_ns - before[path]
        for path, entry in tree.walk()
        if path in before and entry.st_mtime_ns != before[path]
    }
    assert moved
    assert all(step >= 10**9 for step in moved.values())
    assert max(moved.values()) < 100 * 10**9


def test_changes_keep_out_of_links_and_devices(sandbox: Sandbox, tmp_path: Path) -> None:
    """Files outside stay as they are; names of one file stay one file; devices are not touched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.db").write_bytes(b"precious")
    tree = sandbox.tree("live")
    tree.mkdir(b"d")
    for number in range(30):
        tree.symlink(os.fsencode(outside / "precious.db"), b"d/link-%d.db" % number)
        tree.symlink(os.fsencode(outside), b"d/dir-%d" % number)
    tree.write(b"d/one", b"linked")
    for number in range(20):
        tree.link(b"d/one", b"d/name-%d" % number)
    if os.geteuid() == 0:
        os.mknod(tree.path / "d" / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mkfifo(tree.path / "d" / "fifo")
    stamp = (outside / "precious.db").stat().st_mtime_ns
    for seed in range(10):
        change_dataset(tree, seed=seed)
        entries = [entry for _, entry in tree.walk()]
        for entry in entries:
            if stat.S_ISREG(entry.st_mode) and entry.st_nlink > 1:
                assert sum(e.st_ino == entry.st_ino for e in entries) == entry.st_nlink
    assert (outside / "precious.db").read_bytes() == b"precious"
    assert (outside / "precious.db").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in outside.iterdir()) == ["precious.db"]
    special = [e for e in entries if stat.S_ISFIFO(e.st_mode) or stat.S_ISCHR(e.st_mode)]
    assert len(special) == (2 if os.geteuid() == 0 else 1)


def test_broken_applications_are_not_edited_as_such(sandbox: Sandbox) -> None:
    """A damaged database or Parquet file of a real tree is no error, and keeps its content."""
    tree = sandbox.tree("live")
    broken = {
        b"a.db": b"SQLite format 3\0" + bytes(50),
        b"b.db": b"SQLite format 3\0" + b"x" * 5000,
        b"c.parquet": b"PAR1 but no more",
        b"d.parquet": b"PAR1" + b"x" * 3000 + b"PAR1",
    }
    for name, content in broken.items():
        tree.write(name, content)
    for seed in range(8):
        change_dataset(tree, seed=seed)
    for path, entry in tree.walk():
        name = path.split(b"/")[-1].split(b".moved")[0]
        if name in broken and stat.S_ISREG(entry.st_mode):
            assert tree.read(path) == broken[name]


def test_a_real_tree_survives_its_changes(sandbox: Sandbox) -> None:
    """The standard library still compiles where it was not touched; the copy is a real tree."""
    tree = sandbox.tree("live")
    source = Path(os.__file__).parent / "asyncio"
    copy_tree(source, tree, timeout_seconds=60)
    done = change_dataset(tree, seed=1)
    assert isinstance(done, Changes)
    assert done.edited and done.deleted and done.renamed and done.added
    same = subprocess.run(["diff", "-rq", source, tree.path], capture_output=True, check=False)
    assert same.returncode == 1
