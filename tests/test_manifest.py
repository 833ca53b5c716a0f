"""The manifest must tell every change of a tree, and never call equal what it could not read."""

import io
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery_pipelines.cli.manifest import command
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.manifest import (
    Comparison,
    capture,
    compare,
    merge,
    read,
    read_info,
    store,
    subset,
    worker,
    write_shard,
)

IS_ROOT = os.geteuid() == 0
OLD_NS = 1_600_000_000_123_456_789


def build_tree(root: Path) -> None:
    """One of everything that a manifest has to record."""
    root.mkdir(parents=True)
    for name in (b"a", b"a/deep", b"a/deep/er", b"empty", b"not-utf8-\xff\xfe"):
        os.mkdir(os.path.join(os.fsencode(root), name))  # noqa: PTH102, PTH118
    files = {
        b"zero": b"",
        b"small": b"hello",
        b"a/one": b"1" * 1000,
        b"a/deep/er/two": b"2" * 200_000,
        b"a/exactly-128K": b"e" * (128 << 10),
        b"a/large": random.Random(1).randbytes(9 << 20),
        b"not-utf8-\xff\xfe/new\nline \x80": b"odd",
        b"tagged": b"with attributes",
        b"link-source": b"linked",
        b"set-id": b"#!/bin/sh\n",
    }
    for name, content in files.items():
        at(root, name).write_bytes(content)
    with at(root, b"sparse").open("wb") as sparse:
        sparse.truncate(5 << 20)
    os.link(root / "link-source", root / "a" / "link-two")
    os.link(root / "link-source", root / "empty" / "link-three")
    (root / "dangling").symlink_to("nowhere\n")
    (root / "to-directory").symlink_to("a")
    os.mkfifo(root / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    here = os.open(".", os.O_RDONLY)
    os.chdir(root)  # a socket's path may not be long
    listener.bind("socket")
    os.fchdir(here)
    os.close(here)
    listener.close()
    os.setxattr(root / "tagged", "user.colour", b"blue")
    os.setxattr(root / "a", "user.note", b"directory")
    (root / "set-id").chmod(0o4755)
    (root / "empty").chmod(0o2770)
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    os.utime(root, ns=(OLD_NS, OLD_NS))


def at(root: Path, relative: bytes) -> Path:
    return root / os.fsdecode(relative)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("original") / "tree"
    build_tree(tree)
    return tree


@pytest.fixture
def trees(original: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The original's manifest, and a faithful copy of the original."""
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", original, copy], check=True)
    manifest = tmp_path / "expected.parquet"
    capture(original, manifest)
    return manifest, copy


def compare_with(manifest: Path, tree: Path, **options: Any) -> Comparison:
    found = manifest.with_name("found.parquet")
    capture(tree, found)
    return compare_in_both_ways(manifest, found, **options)


def compare_in_both_ways(
    expected: Path, found: Path, shards: int = 4, **options: Any
) -> Comparison:
    """In one piece, after it was seen that shards, merged in any order, say the same."""
    whole = compare(expected, found, **options)
    files = [found.with_name(f"{found.name}-shard-{number}") for number in range(shards)]
    for number, file in enumerate(files):
        write_shard(expected, found, number, shards, file, **options)
    assert merge(files[::-1]) == whole
    return whole


def truth(root: Path) -> dict[bytes, dict[str, Any]]:
    """The rows as the standard library sees them, written without a look at the code."""
    rows = {}
    base = os.fsencode(root)
    names = [b""]
    for directory, directories, files in os.walk(base):
        inner = os.path.relpath(directory, base)
        prefix = b"" if inner == b"." else inner + b"/"
        names += [prefix + name for name in directories + files]
    for name in names:
        path = os.path.join(base, name) if name else base  # noqa: PTH118
        info = os.lstat(path)
        is_file = stat.S_ISREG(info.st_mode)
        rows[name] = {
            "type": {
                stat.S_IFREG: "file",
                stat.S_IFDIR: "directory",
                stat.S_IFLNK: "symlink",
                stat.S_IFIFO: "fifo",
                stat.S_IFSOCK: "socket",
            }[stat.S_IFMT(info.st_mode)],
            "size": info.st_size if is_file else 0,
            "mode": stat.S_IMODE(info.st_mode),
            "uid": info.st_uid,
            "gid": info.st_gid,
            "mtime_ns": info.st_mtime_ns,
            "link_target": os.readlink(path)  # noqa: PTH115
            if stat.S_ISLNK(info.st_mode)
            else None,
            "content_xxh3_128": (
                xxhash.xxh3_128_digest(Path(os.fsdecode(path)).read_bytes()) if is_file else None
            ),
            "device": 0,
            "error": None,
        }
    return rows


def test_rows_are_what_the_tree_holds(original: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.parquet"
    summary = capture(original, manifest)
    expected = truth(original)
    rows = {row["path"]: row for row in read(manifest).to_pylist()}
    assert list(rows) == sorted(expected)
    for path, row in expected.items():
        assert {name: rows[path][name] for name in row} == row, path
    assert summary.entries == len(expected) and summary.errors == 0 and summary.complete
    assert summary.files == sum(row["type"] == "file" for row in expected.values())
    assert summary.bytes == sum(row["size"] for row in expected.values())
    groups = {path: row["hard_link_group"] for path, row in rows.items() if row["hard_link_group"]}
    assert set(groups) == {b"link-source", b"a/link-two", b"empty/link-three"}
    assert len(set(groups.values())) == 1
    with_xattrs = {p for p, r in rows.items() if r["xattr_xxh3_128"] != xxhash.xxh3_128_digest(b"")}
    assert with_xattrs == {b"tagged", b"a"}


def test_file_metadata_says_where_it_comes_from(original: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.parquet"
    summary = capture(original, manifest)
    info = read_info(manifest)
    assert info["root"] == str(original) and info["host"] == socket.gethostname()
    assert info["complete"] is True and info["digest"] == summary.digest
    assert info["schema_version"] == 1 and info["captured_at"].endswith("+00:00")


def test_equal_trees_give_equal_digests_whatever_the_workers(
    trees: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest, copy = trees
    digests = {capture(copy, tmp_path / f"{n}.parquet", workers=n).digest for n in (1, 2, 5)}
    assert digests == {read_info(manifest)["digest"]}
    assert compare(manifest, tmp_path / "5.parquet").identical


def flip_byte_keeping_times(path: Path, position: int = 0) -> None:
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def keeping_parent(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """A change that leaves the mtime of the directories as it was."""

    def run(tree: Path) -> None:
        change(tree)
        for directory in [tree, *(p for p in tree.rglob("*") if p.is_dir())]:
            if not directory.is_symlink():
                os.utime(directory, ns=(OLD_NS, OLD_NS))

    return run


def replace_file(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)
    os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)


def unlink_group_member(tree: Path) -> None:
    member = tree / "a" / "link-two"
    member.unlink()
    shutil.copy2(tree / "link-source", member)
    os.utime(member, ns=(OLD_NS, OLD_NS))


CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, int]]] = {
    "flipped byte": (lambda t: flip_byte_keeping_times(t / "small"), {"content": 1}),
    "flipped byte in a middle file": (
        lambda t: flip_byte_keeping_times(t / "a/deep/er/two", 150_000),
        {"content": 1},
    ),
    "flipped byte in a large file": (
        lambda t: flip_byte_keeping_times(t / "a/large", -1),
        {"content": 1},
    ),
    "flipped byte in a hole": (
        lambda t: flip_byte_keeping_times(t / "sparse", 4 << 20),
        {"content": 1},
    ),
    "one byte longer": (
        keeping_parent(lambda t: replace_file(t / "zero", lambda p: p.write_bytes(b"\0"))),
        {"content": 1},
    ),
    "one nanosecond": (
        lambda t: os.utime(t / "small", ns=(OLD_NS, OLD_NS + 1)),
        {"mtime": 1},
    ),
    "mtime of a symlink": (
        lambda t: os.utime(t / "dangling", ns=(OLD_NS, OLD_NS + 1), follow_symlinks=False),
        {"mtime": 1},
    ),
    "mtime of the root": (lambda t: os.utime(t, ns=(OLD_NS, OLD_NS + 1)), {"mtime": 1}),
    "permission bit": (lambda t: (t / "small").chmod(0o640 ^ 1), {"mode": 1}),
    "set-id bit": (lambda t: (t / "set-id").chmod(0o755), {"mode": 1}),
    "mode of the root": (lambda t: t.chmod(0o700), {"mode": 1}),
    "link target": (
        keeping_parent(lambda t: replace_file(t / "dangling", lambda p: p.symlink_to("x"))),
        {"link_target": 1},
    ),
    "attribute value": (
        lambda t: os.setxattr(t / "tagged", "user.colour", b"red"),
        {"xattr": 1},
    ),
    "attribute gone": (lambda t: os.removexattr(t / "a", "user.note"), {"xattr": 1}),
    "file gone": (keeping_parent(lambda t: (t / "small").unlink()), {"missing": 1}),
    "directory gone": (
        keeping_parent(lambda t: shutil.rmtree(t / "a/deep")),
        {"missing": 3},
    ),
    "file added": (
        keeping_parent(lambda t: (t / "empty/new").write_bytes(b"")),
        {"unexpected": 1},
    ),
    "renamed": (
        keeping_parent(lambda t: (t / "small").rename(t / "renamed")),
        {"missing": 1, "unexpected": 1},
    ),
    "file became a fifo": (
        keeping_parent(
            lambda t: (
                (mode := (t / "zero").stat().st_mode & 0o777)
                and replace_file(t / "zero", lambda p: (os.mkfifo(p), p.chmod(mode)))
            )
        ),
        {"type": 1},
    ),
    "link of a group became a copy": (keeping_parent(unlink_group_member), {"hard_link_group": 3}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_named(name: str, trees: tuple[Path, Path]) -> None:
    manifest, copy = trees
    assert compare_with(manifest, copy).identical
    change, counts = CHANGES[name]
    change(copy)
    comparison = compare_with(manifest, copy)
    assert comparison.counts == counts
    assert not comparison.identical and comparison.undecided == 0
    assert comparison.differences.num_rows == sum(counts.values())
    ignorable = {k for k in counts if k not in ("missing", "type", "content")}
    assert compare_with(manifest, copy, ignore=ignorable).counts == {
        kind: count for kind, count in counts.items() if kind not in ignorable
    }


@pytest.mark.skipif(not IS_ROOT, reason="changing owners and making devices needs root")
def test_owner_and_device_numbers(trees: tuple[Path, Path]) -> None:
    _, copy = trees
    os.mknod(copy / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    manifest = copy.parent / "expected.parquet"
    capture(copy, manifest)
    os.chown(copy / "small", 7, -1)
    os.chown(copy / "dangling", -1, 8, follow_symlinks=False)
    assert compare_with(manifest, copy).counts == {"owner": 2}
    assert compare_with(manifest, copy, ignore=["owner"]).identical
    keeping_parent(lambda t: (t / "device").unlink())(copy)
    os.mknod(copy / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    assert compare_with(manifest, copy, ignore=["owner", "mtime"]).counts == {"device": 1}


def test_acls_are_part_of_the_attributes(trees: tuple[Path, Path]) -> None:
    if shutil.which("setfacl") is None:
        pytest.skip("setfacl is not installed")
    manifest, copy = trees
    subprocess.run(["setfacl", "-m", "u:1234:r", copy / "small"], check=True)
    (copy / "small").chmod(0o644)
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rx", copy / "empty"], check=True)
    assert compare_with(manifest, copy, ignore=["mode"]).counts == {"xattr": 2}


def test_what_may_not_be_ignored_is_refused(trees: tuple[Path, Path]) -> None:
    manifest, _ = trees
    for aspect in ("content", "missing", "type", "nonsense"):
        with pytest.raises(RecoveryError, match=f"cannot ignore {aspect}"):
            compare(manifest, manifest, ignore=[aspect])


def test_nothing_compared_is_not_identical(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    capture(tmp_path / "tree", tmp_path / "root.parquet")
    subset(tmp_path / "root.parquet", [], tmp_path / "none.parquet")
    for name in ("root.parquet", "none.parquet"):
        comparison = compare(tmp_path / name, tmp_path / name)
        assert comparison.differences.num_rows == 0 and comparison.undecided == 0
        assert not comparison.identical


def test_subset_keeps_exactly_the_rows_asked_for(trees: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, copy = trees
    wanted = [b"small", b"not-utf8-\xff\xfe/new\nline \x80", b"a/large", b"no such path"]
    summary = subset(manifest, wanted, tmp_path / "part.parquet")
    assert read(tmp_path / "part.parquet", ["path"])["path"].to_pylist() == sorted(wanted[:3])
    assert (summary.entries, summary.files) == (3, 3)
    everything = read(manifest, ["path"])["path"].to_pylist()
    whole = subset(manifest, everything, tmp_path / "whole.parquet")
    assert whole.digest == read_info(manifest)["digest"]
    capture(copy, tmp_path / "found.parquet")
    subset(tmp_path / "found.parquet", wanted, tmp_path / "found-part.parquet")
    assert compare(tmp_path / "part.parquet", tmp_path / "found-part.parquet").identical


def many_files(root: Path, count: int, directories: int) -> None:
    for directory in range(directories):
        (root / f"d{directory}").mkdir(parents=True)
    for n in range(count):
        (root / f"d{n % directories}" / f"f{n}").write_bytes(b"%d" % n)


def test_spilling_and_row_groups_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    many_files(tree, 4500, 3)
    for n in range(0, 120, 3):
        os.link(tree / f"d{n % 3}" / f"f{n}", tree / "d1" / f"again{n}")
    capture(tree, tmp_path / "plain.parquet")
    assert pq.ParquetFile(tmp_path / "plain.parquet").num_row_groups == 1
    monkeypatch.setattr(store, "_GROUP_ROWS", 1000)
    grouped = capture(tree, tmp_path / "grouped.parquet")
    monkeypatch.setattr(store, "_SPILL_ROWS", 500)
    capture(tree, tmp_path / "spilled.parquet")
    monkeypatch.setattr(store, "_GROUP_ROWS", 40)
    capture(tree, tmp_path / "fine.parquet")
    names = ["plain", "grouped", "spilled", "fine"]
    files = [tmp_path / f"{name}.parquet" for name in names]
    assert [pq.ParquetFile(file).num_row_groups for file in files] == [1, 8, 64, 128]
    assert {read_info(file)["digest"] for file in files} == {grouped.digest}
    assert all(read(file).equals(read(files[0])) for file in files)
    (tree / "d0" / "f0").unlink()
    (tree / "d0" / "new").write_bytes(b"")
    flip_byte_keeping_times(tree / "d1" / "f1")
    capture(tree, tmp_path / "changed.parquet")
    changed = tmp_path / "changed.parquet"
    results = [compare_in_both_ways(file, changed, ignore=["mtime"]) for file in files]
    for result in results:
        assert result.counts == {"missing": 1, "unexpected": 1, "content": 1}
        assert result.differences.equals(results[0].differences)


def test_a_flat_directory_is_shared_among_workers(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    many_files(tree, 5000, 1)
    (tree / "d0" / "big").write_bytes(b"x" * (9 << 20))
    for n in range(3):
        (tree / f"large{n}").write_bytes(bytes([n]) * (8 << 20))
    summary = capture(tree, tmp_path / "m.parquet")
    assert summary.entries == 5000 + 1 + 1 + 1 + 3 and summary.errors == 0
    paths = {
        os.fsencode(str(p.relative_to(tree))) if p != tree else b""
        for p in [tree, *tree.rglob("*")]
    }
    assert set(read(tmp_path / "m.parquet", ["path"])["path"].to_pylist()) == paths


def test_paths_longer_than_the_kernel_takes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    here = os.open(tree, os.O_RDONLY)
    name = "n" * 200
    for _ in range(50):
        os.mkdir(name, dir_fd=here)
        deeper = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    summary = capture(tree, tmp_path / "m.parquet")
    assert (summary.entries, summary.files, summary.errors) == (52, 1, 0)
    assert max(map(len, read(tmp_path / "m.parquet")["path"].to_pylist())) > 10_000


def answer(tree: Path, *request: Any, cold: bool = False) -> list[dict[str, Any]]:
    """What a worker, run in this process, says to one request."""
    replies = io.BytesIO()
    root = os.open(tree, os.O_RDONLY)
    try:
        one = worker.Worker(root, replies)
        one._cold = cold
        one.answer(request)  # type: ignore[arg-type]
    finally:
        os.close(root)
    replies.seek(0)
    reply = worker.receive(replies)
    table, _ = store._table([reply[:4]])
    return table.to_pylist()  # type: ignore[no-any-return]


def test_a_cold_tree_gives_the_same_rows(original: Path) -> None:
    scan = ("scan", b"", b"\0".join([b"", b"a", b"not-utf8-\xff\xfe"]))
    assert answer(original, *scan, cold=True) == answer(original, *scan)


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (("files", b"", b"gone"), {b"gone"}),
        (("large", b"a", b"gone"), {b"a/gone"}),
        (("files", b"gone", b"one\0two"), {b"gone/one", b"gone/two"}),
        (("scan", b"", b"gone"), {b"gone"}),
        (("scan", b"", b"gone/deeper"), {b"gone/deeper"}),
    ],
)
def test_vanished_entries_are_rows(
    original: Path, request_: tuple[str, bytes, bytes], names: set[bytes]
) -> None:
    rows = answer(original, *request_)
    assert {row["path"] for row in rows} == names
    for row in rows:
        assert row["error"].startswith("ENOENT: cannot open")
        assert row["type"] is None and row["content_xxh3_128"] is None


@pytest.mark.parametrize(
    "request_", [("files", b"", b"fifo"), ("files", b"", b"dangling"), ("files", b"", b"a")]
)
def test_an_entry_that_is_no_file_any_more_is_marked(
    original: Path, request_: tuple[str, bytes, bytes]
) -> None:
    (row,) = answer(original, *request_)
    assert row["error"] and row["content_xxh3_128"] is None


@pytest.mark.parametrize("size", [100_000, 64 << 20])
def test_a_file_that_changes_while_it_is_read_is_marked(tmp_path: Path, size: int) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for n in range(20):
        (tree / f"busy{n}").write_bytes(b"x" * (size // 20))
    quiet = capture(tree, tmp_path / "quiet.parquet")
    assert quiet.complete
    stop = threading.Event()

    def scribble() -> None:
        files = [os.open(tree / f"busy{n}", os.O_WRONLY) for n in range(20)]
        while not stop.is_set():
            for fd in files:
                os.pwrite(fd, b"y", 5)
        for fd in files:
            os.close(fd)

    writer = threading.Thread(target=scribble)
    writer.start()
    try:
        deadline = time.monotonic() + 60
        while (busy := capture(tree, tmp_path / "busy.parquet")).complete:
            assert time.monotonic() < deadline
    finally:
        stop.set()
        writer.join()
    rows = read(tmp_path / "busy.parquet").to_pylist()
    marked = [row for row in rows if row["error"]]
    assert len(marked) == busy.errors
    assert {row["error"] for row in marked} == {"changed while it was read"}
    assert not any(row["content_xxh3_128"] for row in marked)
    assert read_info(tmp_path / "busy.parquet")["complete"] is False
    comparison = compare(tmp_path / "quiet.parquet", tmp_path / "busy.parquet", ignore=["mtime"])
    assert comparison.undecided == busy.errors and not comparison.identical


WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if IS_ROOT else []


def run_unprivileged(program: str, *arguments: Path | str) -> str:
    """Run Python code without special rights (as root: without any capability)."""
    argv = [*WITHOUT_RIGHTS, sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_unreadable_entries_are_rows_and_never_identical(tmp_path: Path) -> None:
    program = """
        import json, os, sys
        from pathlib import Path
        from recovery_pipelines.manifest import capture, compare, read
        place = Path(sys.argv[1])
        tree = place / "tree"
        for name in ("closed", "unsearchable", "fine"):
            (tree / name).mkdir(parents=True)
            (tree / name / "inner").write_text(name)
        (tree / "secret").write_text("secret")
        good = capture(tree, place / "good.parquet")
        assert good.complete
        (tree / "secret").chmod(0)
        (tree / "closed").chmod(0)
        (tree / "unsearchable").chmod(0o444)
        bad = capture(tree, place / "bad.parquet")
        (tree / "closed").chmod(0o700)
        (tree / "unsearchable").chmod(0o700)
        rows = read(place / "bad.parquet", ["path", "type", "error"]).to_pylist()
        for row in rows:
            row["path"] = row["path"].decode()
        compared = []
        for a, b in (("good", "bad"), ("bad", "good"), ("bad", "bad")):
            c = compare(place / (a + ".parquet"), place / (b + ".parquet"), ignore=["mode"])
            compared.append([c.counts, c.undecided, c.identical])
        print(json.dumps([bad.errors, rows, compared]))
    """
    errors, rows, compared = json.loads(run_unprivileged(program, tmp_path))
    failed = {row["path"]: row["error"] for row in rows if row["error"]}
    assert set(failed) == {"secret", "closed", "unsearchable/inner"}
    assert all(error.startswith("EACCES: ") for error in failed.values()) and errors == 3
    types = {row["path"]: row["type"] for row in rows}
    assert types["secret"] == "file" and types["closed"] == "directory"
    assert "closed/inner" not in types
    # `closed/inner` is neither missing nor unexpected: nobody could look.
    assert compared == [[{}, 4, False], [{}, 4, False], [{}, 3, False]]


def test_differences_are_proven_even_where_other_entries_are_undecided(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from click.testing import CliRunner
        from recovery_pipelines.cli.manifest import command
        from recovery_pipelines.manifest import capture
        place = Path(sys.argv[1])
        tree = place / "tree"
        tree.mkdir()
        (tree / "secret").write_text("secret")
        (tree / "open").write_text("open")
        capture(tree, place / "m.parquet")
        (tree / "secret").chmod(0)
        codes = []
        def verify(*options):
            arguments = ["verify", str(place / "m.parquet"), str(tree), *options]
            codes.append(CliRunner().invoke(command, arguments).exit_code)
        verify()
        verify("--ignore", "mode")
        (tree / "open").write_text("changed")
        verify("--ignore", "mode")
        arguments = ["create", str(tree), "-o", str(place / "n.parquet")]
        codes.append(CliRunner().invoke(command, arguments).exit_code)
        print(*codes)
    """
    assert run_unprivileged(program, tmp_path).split() == ["1", "2", "1", "2"]


def test_files_of_others_are_read_too(tmp_path: Path) -> None:
    """Only the owner may ask the kernel to leave the access time alone."""
    place = Path(os.__file__).parent / "json" if not IS_ROOT else tmp_path / "tree"
    if IS_ROOT:
        place.mkdir()
        (place / "foreign").write_text("foreign")
        os.chown(place / "foreign", 7, 7)
        os.chown(place, 7, 7)
    program = """
        import sys
        from pathlib import Path
        from recovery_pipelines.manifest import capture
        summary = capture(Path(sys.argv[1]), Path(sys.argv[2]))
        print(summary.errors, summary.files)
    """
    errors, files = run_unprivileged(program, place, tmp_path / "m.parquet").split()
    assert errors == "0" and int(files) >= 1


def test_refuses_to_write_into_the_tree_it_describes(original: Path) -> None:
    with pytest.raises(RecoveryError, match="inside the tree"):
        capture(original, original / "a" / "m.parquet")


def test_an_older_manifest_survives_a_failed_capture(original: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.parquet"
    capture(original, manifest)
    before = manifest.read_bytes()

    def fail(_: Any) -> None:
        raise RecoveryError("stopped")

    with pytest.raises(RecoveryError, match="stopped"):
        capture(original, manifest, progress=fail)
    assert manifest.read_bytes() == before
    assert list(tmp_path.iterdir()) == [manifest]


@pytest.mark.parametrize("spill_rows", [250_000, 100])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, spill_rows: int) -> None:
    many_files(tmp_path / "tree", 500, 2)
    (tmp_path / "out").mkdir()
    program = """
        import resource, sys
        from pathlib import Path
        from recovery_pipelines.errors import RecoveryError
        from recovery_pipelines.manifest import capture, store
        store._SPILL_ROWS = int(sys.argv[3])
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            capture(Path(sys.argv[1]), Path(sys.argv[2]))
        except RecoveryError as error:
            print(error)
    """
    output = tmp_path / "out" / "m.parquet"
    said = run_unprivileged(program, tmp_path / "tree", output, str(spill_rows))
    assert "cannot be written: File too large" in said
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_manifest_is_refused_or_reads_the_same(original: Path, tmp_path: Path) -> None:
    manifest, damaged = tmp_path / "m.parquet", tmp_path / "damaged.parquet"
    capture(original, manifest)
    intact, rows = manifest.read_bytes(), read(manifest)
    rng = random.Random(5)
    refused = 0
    for position in [*range(0, len(intact), 37), *range(len(intact) - 8, len(intact))]:
        flipped = bytearray(intact)
        flipped[position] ^= 1 << rng.randrange(8)
        damaged.write_bytes(flipped)
        try:
            again = read(damaged)
        except RecoveryError:
            refused += 1
        else:
            assert again.equals(rows), position
    assert refused > 0
    for length in (0, 1, 100, len(intact) // 2, len(intact) - 1):
        damaged.write_bytes(intact[:length])
        with pytest.raises(RecoveryError, match="cannot be used"):
            compare(damaged, manifest)


# --- processes -----------------------------------------------------------------------------------


def endless_tree(root: Path) -> Path:
    """A tree that takes minutes to read and no space."""
    root.mkdir()
    for n in range(4):
        with (root / f"holes{n}").open("wb") as file:
            file.truncate(1 << 40)
    return root


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited 30 s in vain"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_stopped_capture(tmp_path: Path, signum: signal.Signals) -> None:
    tree = endless_tree(tmp_path / "tree")
    output = tmp_path / "out"
    output.mkdir()
    program = "from recovery_pipelines.cli import main; main()"
    argv = [sys.executable, "-c", program, "manifest", "create", tree, "-o", output / "m.parquet"]
    master = subprocess.Popen(argv, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: len(children_of(master.pid)) >= 1)
        workers = children_of(master.pid)
        # A worker that reads a file of the tree is past its start.
        wait_until(lambda: any(reads_a_file_of(pid, tree) for pid in workers))
        master.send_signal(signum)
        code = master.wait(timeout=30)
    finally:
        with suppress(ProcessLookupError):
            master.kill()
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[signum]
    wait_until(lambda: not any(map(is_running, workers)))
    assert list(output.iterdir()) == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_that_a_module_took_for_its_own_failure_is_still_a_stop(
    signum: signal.Signals, code: int
) -> None:
    """An extension module whose initialization is interrupted raises an ImportError."""
    program = f"""
import signal
from recovery_pipelines.cli.manifest import _exit_codes
with _exit_codes():
    try:
        signal.raise_signal({signum.value})
    except BaseException as stop:
        raise ImportError("initialization failed") from stop
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False)


def reads_a_file_of(pid: int, tree: Path) -> bool:
    with suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if str(fd.readlink()).startswith(f"{tree}/"):
                    return True
    return False


def test_a_dead_worker_is_an_error_not_a_short_manifest(tmp_path: Path) -> None:
    tree = endless_tree(tmp_path / "tree")

    def kill_one(_: Any) -> None:
        for pid in children_of(os.getpid()):
            if reads_a_file_of(pid, tree):
                os.kill(pid, signal.SIGKILL)
                return

    with pytest.raises(RecoveryError, match="a worker of the capture died"):
        capture(tree, tmp_path / "m.parquet", progress=kill_one)
    assert not (tmp_path / "m.parquet").exists()


# --- the command line ----------------------------------------------------------------------------


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_exit_codes(trees: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, copy = trees
    assert run("create", copy, "-o", tmp_path / "m.parquet").exit_code == 0
    assert run("verify", manifest, copy).exit_code == 0
    (copy / "small").chmod(0o600)
    (copy / "tagged").unlink()
    different = run("verify", manifest, copy, "--ignore", "mtime")
    assert different.exit_code == 1
    assert "missing: 1\n  tagged: file -> absent" in different.stdout
    assert "mode: 1\n  small: 0644 -> 0600" in different.stdout
    assert "not compared: mtime" in different.stdout
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    (tmp_path / "void").mkdir()
    run("create", tmp_path / "void", "-o", tmp_path / "void.parquet")
    for arguments in (
        ("verify", tmp_path / "junk.parquet", copy),
        ("verify", tmp_path / "no.parquet", copy),
        ("verify", manifest, tmp_path / "no-tree"),
        ("verify", manifest, manifest),
        ("verify", manifest, copy, "--ignore", "content"),
        ("verify", tmp_path / "void.parquet", tmp_path / "void"),
        ("create", tmp_path / "no-tree", "-o", tmp_path / "x.parquet"),
        ("create", copy, "-o", tmp_path / "no-directory" / "x.parquet"),
        ("create", copy, "-o", copy / "x.parquet"),
    ):
        assert run(*arguments).exit_code == 2, arguments


def test_shards_are_merged_only_if_all_are_there_once(
    trees: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest, copy = trees
    (copy / "small").chmod(0o600)
    capture(copy, tmp_path / "found.parquet")
    pair = (manifest, tmp_path / "found.parquet")
    parts = [tmp_path / f"part-{number}" for number in range(2)]
    for number, part in enumerate(parts):
        assert run("shard", *pair, "--shard", f"{number}/2", "-o", part).exit_code == 0
    merged = run("merge", *parts)
    assert merged.exit_code == 1 and "mode: 1\n  small: 0644 -> 0600" in merged.stdout
    assert run("shard", manifest, manifest, "--shard", "0/1", "-o", tmp_path / "own").exit_code == 0
    assert run("merge", tmp_path / "own").exit_code == 0
    assert (
        run("shard", manifest, manifest, "--shard", "1/2", "-o", tmp_path / "other").exit_code == 0
    )
    for wrong in ([parts[0]], [parts[0], parts[0]], [*parts, parts[1]], [manifest]):
        assert run("merge", *wrong).exit_code == 2, wrong
    assert "not of one comparison" in run("merge", parts[0], tmp_path / "other").output
    for number in ("2/2", "0/3", "1", "-1/2"):
        assert run("shard", *pair, "--shard", number, "-o", tmp_path / "x").exit_code == 2


def test_json_holds_everything(trees: tuple[Path, Path]) -> None:
    manifest, copy = trees
    (copy / "small").chmod(0o600)
    at(copy, b"not-utf8-\xff\xfe/new\nline \x80").chmod(0o600)
    result = run("verify", manifest, copy, "--json", "--ignore", "owner", "--ignore", "mtime")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["result"] == "different" and report["counts"] == {"mode": 2}
    assert report["ignored"] == ["mtime", "owner"] and report["undecided"] == 0
    odd, plain = report["differences"]
    assert bytes.fromhex(odd["path_hex"]) == b"not-utf8-\xff\xfe/new\nline \x80"
    assert plain == {"path": "small", "kind": "mode", "expected": "0644", "found": "0600"}


def test_progress_is_shown_on_request(trees: tuple[Path, Path]) -> None:
    manifest, copy = trees
    assert "files" in run("verify", manifest, copy, "--progress").stderr
    assert run("verify", manifest, copy).stderr == ""


def test_progress_grows_to_the_end(original: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    summary = capture(original, tmp_path / "m.parquet", progress=seen.append)
    assert [p.fraction for p in seen] == sorted(p.fraction for p in seen)
    assert seen[-1].fraction == 1.0
    assert (seen[-1].entries, seen[-1].files) == (summary.entries, summary.files)
    assert seen[-1].bytes == summary.bytes


# --- properties ----------------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff", b"d e", b"new\nline"])
FILES = st.dictionaries(
    NAMES,
    st.tuples(
        st.sampled_from([b"", b"x", b"y", b"xx"]),
        st.sampled_from([0o600, 0o644]),
        st.sampled_from([10**18, 10**18 + 1]),
    ),
)

SHARDS = st.sampled_from([1, 2, 8])


def make_files(root: Path, files: dict[bytes, tuple[bytes, int, int]]) -> Path:
    root.mkdir()
    for name, (content, mode, mtime_ns) in files.items():
        at(root, name).write_bytes(content)
        at(root, name).chmod(mode)
        os.utime(at(root, name), ns=(0, mtime_ns))
    os.utime(root, ns=(0, 0))
    return root


@given(left=FILES, right=FILES, shards=SHARDS)
@settings(max_examples=25, deadline=None)
def test_comparison_is_the_difference_of_the_trees(
    left: dict[bytes, tuple[bytes, int, int]],
    right: dict[bytes, tuple[bytes, int, int]],
    shards: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place = tmp_path_factory.mktemp("pair")
    for name, files in (("left", left), ("right", right)):
        capture(make_files(place / name, files), place / f"{name}.parquet", workers=1)
    expected = {(name, "missing") for name in left.keys() - right.keys()}
    expected |= {(name, "unexpected") for name in right.keys() - left.keys()}
    for name in left.keys() & right.keys():
        for kind, one, other in zip(
            ("content", "mode", "mtime"), left[name], right[name], strict=True
        ):
            if one != other:
                expected.add((name, kind))
    comparison = compare_in_both_ways(place / "left.parquet", place / "right.parquet", shards)
    rows = comparison.differences.select(["path", "kind"]).to_pylist()
    assert [(row["path"], row["kind"]) for row in rows] == sorted(expected)
    assert comparison.identical == (not expected and bool(left))


@given(
    left=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    right=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    absent=st.sets(st.integers(0, 5), max_size=2),
    shards=SHARDS,
)
@settings(max_examples=25, deadline=None)
def test_hard_links_are_compared_as_partitions(
    left: list[int],
    right: list[int],
    absent: set[int],
    shards: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place = tmp_path_factory.mktemp("links")
    for side, groups in (("left", left), ("right", right)):
        tree = place / side
        tree.mkdir()
        first: dict[int, Path] = {}
        for n, group in enumerate(groups):
            if side == "right" and n in absent:
                continue
            if group in first:
                os.link(first[group], tree / f"f{n}")
            else:
                first[group] = tree / f"f{n}"
                first[group].write_bytes(b"same")
        capture(tree, place / f"{side}.parquet", workers=1)
    common = [n for n in range(6) if n not in absent]
    expected = [
        b"f%d" % n
        for n in common
        if {m for m in common if left[m] == left[n]} != {m for m in common if right[m] == right[n]}
    ]
    comparison = compare_in_both_ways(
        place / "left.parquet", place / "right.parquet", shards, ignore=["mtime"]
    )
    rows = comparison.differences.to_pylist()
    named = {row["path"] for row in rows if row["kind"] == "hard_link_group"}
    assert named == set(expected)


def test_the_command_starts_light() -> None:
    """Workers start before the large libraries are loaded."""
    program = (
        "import sys; import recovery_pipelines.cli.manifest; "
        "print(sorted({'pyarrow', 'pandas', 'numpy', 'dagster'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
