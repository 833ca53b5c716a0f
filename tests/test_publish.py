"""After publishing, a fresh manifest of the live tree must equal the expected one."""

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from recovery_pipelines.drills.publish import paths_to_restore, publish
from recovery_pipelines.errors import RecoveryError, SandboxError
from recovery_pipelines.manifest import Comparison, capture, compare
from recovery_pipelines.sandbox import Sandbox, Tree

ROOT = os.geteuid() == 0
AWKWARD = b"not-utf8-\xff and\nnewline *?["


def build(tree: Tree) -> None:
    """A small tree with one of everything that publishing has to keep."""
    for directory in (b"a", b"a/b", b"a/b/c", b"empty", b"shared", AWKWARD, b"read-only"):
        tree.mkdir(directory)
    for name in (b"top", b"a/one", b"a/b/two", b"a/b/c/three", AWKWARD + b"/x", b"shared/y"):
        tree.write(name, name * 50)
    tree.write(b"read-only/kept", b"kept")
    for name in (b"linked", b"a/linked", b"a/b/linked", b"shared/pair"):
        tree.write(name, b"x") if name in (b"linked", b"shared/pair") else tree.link(
            b"linked", name
        )
    tree.link(b"shared/pair", b"pair")
    tree.symlink(b"a/one", b"relative")
    tree.symlink(b"/nowhere\xff", b"a/dangling")
    os.mkfifo(tree.path / "fifo")
    for name in (b"a", b"a/one", b"empty", b"linked", b""):
        with suppress(OSError):  # not every file system has user attributes
            tree.setxattr(name, "user.kept", b"value\0" + name)
    tree.chmod(b"shared", 0o2770)
    tree.chmod(b"empty", 0o1777)
    tree.chmod(b"top", 0o4711)
    tree.chmod(b"a/b/two", 0o400)
    tree.chmod(b"read-only", 0o555)
    tree.chmod(b"", 0o751)
    if ROOT:
        tree.chown(b"a/b", 1234, 4321)
        tree.chown(b"a/dangling", 1234, 4321)
        tree.chown(b"a/b/c/three", 7, 8)
    rng = random.Random(5)
    for name in [*reversed([path for path, _ in tree.walk()]), b""]:
        tree.utime_ns(name, 10**18, rng.randrange(10**18, 16 * 10**17))


class Bench:
    """A live tree, its manifest, and a copy to recover from."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.sandbox = sandbox
        self.folder = folder
        self.original = sandbox.tree("original")
        build(self.original)
        self.expected = self.capture(self.original, "expected")
        self.live = sandbox.tree("live")
        self.copy(self.original, self.live)

    def capture(self, tree: Tree, name: str) -> Path:
        path = self.folder / f"{name}.parquet"
        capture(tree.path, path, workers=1)
        return path

    def damage(self) -> Comparison:
        return compare(self.expected, self.capture(self.live, "damaged"))

    def copy(self, source: Tree, target: Tree, paths: list[bytes] | None = None) -> None:
        """By tar, all or exactly `paths`; directories on the way get whatever metadata."""
        keep = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--format=posix"]
        which = ["."] if paths is None else ["--no-recursion", "--null", "--files-from=-"]
        packed = subprocess.run(
            ["tar", "-c", "--sparse", *keep, "-C", source.path, *which],
            input=b"".join(b"./" + path + b"\0" for path in paths or []),
            capture_output=True,
            check=True,
        ).stdout
        subprocess.run(
            ["tar", "-x", "-p", *keep, "-C", target.path],
            input=packed,
            capture_output=True,
            check=True,
        )

    def require_recovered(self) -> None:
        after = compare(self.expected, self.capture(self.live, "after"))
        assert after.differences.to_pylist() == [], after.counts
        assert after.identical


@contextmanager
def bench() -> Iterator[Bench]:
    with TemporaryDirectory() as folder, Sandbox.create(Path(folder), "publish") as sandbox:
        yield Bench(sandbox, Path(folder))


# Damage, done with plain calls on the path as anything on the machine could do it.


def remove(path: Path, rng: random.Random) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def overwrite(path: Path, rng: random.Random) -> None:
    if path.is_file() and not path.is_symlink():
        times = path.stat()
        path.write_bytes(rng.randbytes(times.st_size))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def change_mode(path: Path, rng: random.Random) -> None:
    if not path.is_symlink():
        path.chmod(rng.choice([0, 0o444, 0o700, 0o755, 0o777, 0o2775, 0o4755]))


def change_owner(path: Path, rng: random.Random) -> None:
    if ROOT:
        os.chown(path, rng.randrange(3), rng.randrange(3), follow_symlinks=False)


def change_time(path: Path, rng: random.Random) -> None:
    os.utime(path, ns=(0, rng.randrange(10**18)), follow_symlinks=False)


def change_xattr(path: Path, rng: random.Random) -> None:
    if path.is_file() or path.is_dir():
        os.setxattr(path, rng.choice(["user.kept", "user.new"]), b"damage")


def lose_xattrs(path: Path, rng: random.Random) -> None:
    if not path.is_symlink():
        for name in os.listxattr(path):
            os.removexattr(path, name)


def add_beside(path: Path, rng: random.Random) -> None:
    new = path.parent / f"new-{rng.getrandbits(60)}"
    new.mkdir()
    (new / "file").write_bytes(b"not in the manifest")
    (new / "link").symlink_to("file")
    with suppress(OSError):
        (new / "hard").hardlink_to(path)


def rename_beside(path: Path, rng: random.Random) -> None:
    path.rename(path.with_name(f"moved-{rng.getrandbits(60)}"))


def become_file(path: Path, rng: random.Random) -> None:
    remove(path, rng)
    path.write_bytes(b"was something else")


def become_directory(path: Path, rng: random.Random) -> None:
    remove(path, rng)
    path.mkdir()
    (path / "a").mkdir()
    (path / "a" / "b").write_bytes(b"was something else")


def become_link(path: Path, rng: random.Random) -> None:
    target = rng.choice(["a", "a/b", "/", "nowhere"])
    remove(path, rng)
    path.symlink_to(target)


def become_fifo(path: Path, rng: random.Random) -> None:
    remove(path, rng)
    os.mkfifo(path)


def break_link(path: Path, rng: random.Random) -> None:
    if path.is_file() and not path.is_symlink() and path.stat().st_nlink > 1:
        shutil.copy2(path, path.with_name("copy"))
        path.with_name("copy").rename(path)


def join_links(path: Path, rng: random.Random) -> None:
    others = [other for other in path.parent.iterdir() if other.is_file() and other != path]
    if path.is_file() and not path.is_symlink() and others:
        remove(path, rng)
        path.hardlink_to(rng.choice(others))


DAMAGE: list[Callable[[Path, random.Random], None]] = [
    remove, overwrite, change_mode, change_owner, change_time, change_xattr, lose_xattrs,
    add_beside, rename_beside, become_file, become_directory, become_link, become_fifo,
    break_link, join_links,
]  # fmt: skip
ABOUT_THE_ROOT = [change_mode, change_owner, change_time, change_xattr, lose_xattrs]


def everything_there_can_be_walked(live: Tree) -> bool:
    """An ordinary user cannot damage, nor examine, what lies below a directory of mode 000."""
    try:
        list(live.walk())
    except PermissionError:
        return False
    return True


def damage(live: Tree, kinds: list[int], seed: int) -> None:
    rng = random.Random(seed)
    for kind in kinds:
        if not everything_there_can_be_walked(live):
            return
        done = DAMAGE[kind]
        paths = [path for path, _ in live.walk()]
        if done in ABOUT_THE_ROOT:
            paths.append(b"")
        if paths:
            try:
                done(live.path / os.fsdecode(rng.choice(paths)), rng)
            except PermissionError:
                if ROOT:
                    raise


SOME_DAMAGE = st.lists(st.integers(0, len(DAMAGE) - 1), min_size=1, max_size=10)
PROPERTY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@PROPERTY
@given(kinds=SOME_DAMAGE, seed=st.integers(0, 2**32), whole=st.booleans())
@example(kinds=list(range(len(DAMAGE))), seed=1, whole=False)
def test_only_the_damage_is_replaced(kinds: list[int], seed: int, whole: bool) -> None:
    with bench() as b:
        damage(b.live, kinds, seed)
        before = {path: found.st_ino for path, found in b.original.walk()}
        comparison = b.damage()
        wanted = paths_to_restore(b.expected, comparison)
        staging = b.sandbox.tree("staging")
        b.copy(b.original, staging, None if whole else wanted)
        publish(staging, b.live, b.expected, comparison)
        b.require_recovered()
        assert {path: found.st_ino for path, found in b.original.walk()} == before


@PROPERTY
@given(kinds=SOME_DAMAGE, seed=st.integers(0, 2**32))
def test_all_is_replaced(kinds: list[int], seed: int) -> None:
    with bench() as b:
        damage(b.live, kinds, seed)
        root = b.live.stat(b"").st_ino
        staging = b.sandbox.tree("staging")
        b.copy(b.original, staging)
        publish(staging, b.live, b.expected, None)
        b.require_recovered()
        assert b.live.stat(b"").st_ino == root
        assert staging.listdir() == []


@pytest.mark.parametrize("path", ["", "a", "a/b/c", "empty", "linked", "top", "relative", "fifo"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_each_damage_to_each_type(kind: Callable[[Path, random.Random], None], path: str) -> None:
    if path == "" and kind not in ABOUT_THE_ROOT:
        pytest.skip("not a damage to a root")
    with bench() as b:
        kind(b.live.path / path, random.Random(3))
        comparison = b.damage()
        staging = b.sandbox.tree("staging")
        b.copy(b.original, staging, paths_to_restore(b.expected, comparison))
        publish(staging, b.live, b.expected, comparison)
        b.require_recovered()


def test_undamaged_entries_are_not_touched() -> None:
    with bench() as b:
        (b.live.path / "a" / "one").write_bytes(b"damage")
        kept = {path: (found.st_ino, found.st_ctime_ns) for path, found in b.live.walk()}
        comparison = b.damage()
        staging = b.sandbox.tree("staging")
        b.copy(b.original, staging)
        publish(staging, b.live, b.expected, comparison)
        now = {path: (found.st_ino, found.st_ctime_ns) for path, found in b.live.walk()}
        assert [path for path in kept if kept[path] != now[path]] == [b"a", b"a/one"]


def test_nothing_is_changed_if_staging_lacks_an_entry() -> None:
    with bench() as b:
        (b.live.path / "top").unlink()
        (b.live.path / "unexpected").write_bytes(b"")
        comparison = b.damage()
        before = b.capture(b.live, "before")
        with pytest.raises(RecoveryError, match="top"):
            publish(b.sandbox.tree("staging"), b.live, b.expected, comparison)
        assert compare(before, b.capture(b.live, "after")).identical


def test_links_in_the_way_lead_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "one").write_bytes(b"production")
    with bench() as b:
        shutil.rmtree(b.live.path / "a")
        (b.live.path / "a").symlink_to(outside)
        (b.live.path / "new").symlink_to(outside)
        comparison = b.damage()
        staging = b.sandbox.tree("staging")
        b.copy(b.original, staging)
        publish(staging, b.live, b.expected, comparison)
        b.require_recovered()
    assert [path.name for path in outside.iterdir()] == ["one"]
    assert (outside / "one").read_bytes() == b"production"
    assert stat.S_IMODE((outside / "one").stat().st_mode) & 0o600 == 0o600


def test_live_trees_for_reading_are_refused() -> None:
    with bench() as b:
        (b.live.path / "top").unlink()
        comparison = b.damage()
        staging = b.sandbox.tree("staging")
        b.copy(b.original, staging)
        for how in (comparison, None):
            with pytest.raises(SandboxError, match="reading only"):
                publish(staging, Tree.read_only(b.live.path), b.expected, how)
        assert compare(b.expected, b.capture(b.live, "after")).counts == {"missing": 1, "mtime": 1}
