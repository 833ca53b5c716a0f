"""The sandbox must refuse every way out, and leave nothing behind whatever ends its owner."""

import contextlib
import ctypes
import json
import multiprocessing
import os
import random
import select
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import pytest

from recovery_pipelines.errors import RecoveryError, SandboxError
from recovery_pipelines.sandbox import Sandbox, Tree, exclusive, is_alive, reap
from recovery_pipelines.sandbox import lease as lease_module
from recovery_pipelines.sandbox import sandbox as sandbox_module
from recovery_pipelines.sandbox.lease import dead, survey

ROOT = os.geteuid() == 0


class Production:
    """What must never change: a directory with a file, compared byte for byte and to the ns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "file"
        path.mkdir()
        self.file.write_bytes(b"production")
        (path / "sub").mkdir()
        (path / "sub" / "file").write_bytes(b"more production")

    def state(self) -> list[object]:
        found: list[object] = []
        for path in [self.path, *sorted(self.path.rglob("*"))]:
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            xattrs = os.listxattr(path)
            kept = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink)
            found.append((path, content, kept, status.st_mtime_ns, status.st_ctime_ns, xattrs))
        return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A home where fsync costs nothing, if there is one."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as home:
        yield Path(home)


@pytest.fixture
def production(tmp_path: Path) -> Production:
    return Production(tmp_path / "production")


@pytest.fixture
def sandbox(home: Path) -> Iterator[Sandbox]:
    with Sandbox.create(home, "test") as made:
        yield made


@pytest.fixture
def tree(sandbox: Sandbox) -> Tree:
    made = sandbox.tree("source")
    made.mkdir(b"sub")
    made.write(b"sub/file", b"inside")
    return made


def no_reports(problem: str) -> None:
    raise AssertionError(problem)


# Ways out of the tree, each set up by hand as an attacker (or an accident) would.


def dot_dot(tree: Tree, production: Production) -> bytes:
    (tree.path.parent / "production").symlink_to(production.path)
    return b"../production/file"


def dot_dot_in_the_middle(tree: Tree, production: Production) -> bytes:
    return b"sub/../../" + os.fsencode(os.path.relpath(production.file, tree.path.parent))


def to_a_sibling_tree(tree: Tree, production: Production) -> bytes:
    return b"sub/../../source/sub/file"


def absolute(tree: Tree, production: Production) -> bytes:
    return os.fsencode(production.file)


def linked_directory(tree: Tree, production: Production) -> bytes:
    (tree.path / "link").symlink_to(production.path)
    return b"link/file"


def linked_directory_relative(tree: Tree, production: Production) -> bytes:
    (tree.path / "sub" / "link").symlink_to(os.path.relpath(production.path, tree.path / "sub"))
    return b"sub/link/sub/file"


def linked_file(tree: Tree, production: Production) -> bytes:
    (tree.path / "link").symlink_to(production.file)
    return b"link"


def dangling_link(tree: Tree, production: Production) -> bytes:
    (tree.path / "link").symlink_to(production.path / "new")
    return b"link"


def magic_link(tree: Tree, production: Production) -> bytes:
    (tree.path / "root").symlink_to("/proc/self/root")
    return b"root" + os.fsencode(production.file)


def hard_link(tree: Tree, production: Production) -> bytes:
    (tree.path / "hard").hardlink_to(production.file)
    return b"hard"


def hard_link_with_two_names_inside(tree: Tree, production: Production) -> bytes:
    (tree.path / "hard").hardlink_to(production.file)
    (tree.path / "sub" / "hard").hardlink_to(production.file)
    return b"sub/hard"


WAYS_OUT = [
    dot_dot, dot_dot_in_the_middle, to_a_sibling_tree, absolute, linked_directory,
    linked_directory_relative, linked_file, dangling_link, magic_link, hard_link,
    hard_link_with_two_names_inside,
]  # fmt: skip

CONTENT: dict[str, Callable[[Tree, bytes], object]] = {
    "write": lambda tree, path: tree.write(path, b"damage"),
    "open to write": lambda tree, path: tree.open(path, os.O_WRONLY),
    "open to truncate": lambda tree, path: tree.open(path, os.O_RDWR | os.O_TRUNC),
    "open read-only and truncate": lambda tree, path: tree.open(path, os.O_TRUNC),
    "open to append": lambda tree, path: tree.open(path, os.O_WRONLY | os.O_APPEND),
    "open to create": lambda tree, path: tree.open(path, os.O_WRONLY | os.O_CREAT, 0o600),
}
METADATA: dict[str, Callable[[Tree, bytes], object]] = {
    "chmod": lambda tree, path: tree.chmod(path, 0o777),
    "chown": lambda tree, path: tree.chown(path, os.getuid(), os.getgid()),
    "utime": lambda tree, path: tree.utime_ns(path, 1, 1),
    "setxattr": lambda tree, path: tree.setxattr(path, "user.damage", b"1"),
    "removexattr": lambda tree, path: tree.removexattr(path, "user.damage"),
}
NAMES: dict[str, Callable[[Tree, bytes], object]] = {
    "unlink": lambda tree, path: tree.unlink(path),
    "rmdir": lambda tree, path: tree.rmdir(path),
    "rmtree": lambda tree, path: tree.rmtree(path),
    "mkdir": lambda tree, path: tree.mkdir(path + b"-new"),
    "symlink": lambda tree, path: tree.symlink(b"x", path + b"-new"),
    "link out": lambda tree, path: tree.link(b"sub/file", path + b"-new"),
    "rename out": lambda tree, path: tree.rename(b"sub/file", path),
    "clear": lambda tree, path: tree.clear(path),
}


@pytest.mark.parametrize("operation", [*CONTENT, *METADATA])
@pytest.mark.parametrize("way_out", WAYS_OUT)
def test_content_and_metadata_outside_are_refused(
    tree: Tree, production: Production, way_out: Callable[[Tree, Production], bytes], operation: str
) -> None:
    path = way_out(tree, production)
    before = production.state()
    about_the_link_itself = way_out in (linked_file, dangling_link) and operation in METADATA
    if about_the_link_itself:
        try:
            METADATA[operation](tree, path)
        except OSError as error:  # a link has no mode and no user attributes
            assert str(tree.path) in str(error)
    else:
        with pytest.raises(SandboxError, match="refused"):
            (CONTENT | METADATA)[operation](tree, path)
    assert production.state() == before


@pytest.mark.parametrize("operation", NAMES)
@pytest.mark.parametrize("way_out", WAYS_OUT)
def test_names_outside_are_refused(
    tree: Tree, production: Production, way_out: Callable[[Tree, Production], bytes], operation: str
) -> None:
    path = way_out(tree, production)
    before = production.state()
    mtime_ns = production.file.stat().st_mtime_ns
    if way_out in (linked_file, dangling_link, hard_link, hard_link_with_two_names_inside):
        # The name itself is inside, and may go; only the link count outside follows.
        with contextlib.suppress(SandboxError, OSError):
            NAMES[operation](tree, path)
        assert production.file.read_bytes() == b"production"
        assert production.file.stat().st_mtime_ns == mtime_ns
        assert sorted(path.name for path in production.path.iterdir()) == ["file", "sub"]
    else:
        with pytest.raises(SandboxError, match="refused"):
            NAMES[operation](tree, path)
        assert production.state() == before


@pytest.mark.parametrize("relative", [b"..", b"sub/..", b".", b"/", b"sub//file", b"sub/", b"a\0b"])
@pytest.mark.parametrize("operation", ["stat", "read", "rmtree", "subtree", "walk below"])
def test_names_that_are_not_plain_are_refused(tree: Tree, relative: bytes, operation: str) -> None:
    operations: dict[str, Callable[[], object]] = {
        "stat": lambda: tree.stat(relative),
        "read": lambda: tree.read(relative),
        "rmtree": lambda: tree.rmtree(relative),
        "subtree": lambda: tree.subtree(relative),
        "walk below": lambda: list(tree.subtree(relative).walk()),
    }
    with pytest.raises(SandboxError, match="refused"):
        operations[operation]()
    assert tree.read(b"sub/file") == b"inside"


def test_links_that_stay_inside_are_not_followed_either(tree: Tree) -> None:
    tree.symlink(b"sub", b"link")
    for operation in (CONTENT | METADATA).values():
        with pytest.raises(SandboxError, match="link"):
            operation(tree, b"link/file")
    assert tree.read(b"sub/file") == b"inside"


def test_hard_links_inside_the_sandbox_may_be_changed(sandbox: Sandbox, tree: Tree) -> None:
    other = sandbox.tree("other")
    tree.link(b"sub/file", b"second")
    (other.path / "third").hardlink_to(tree.path / "second")
    tree.write(b"second", b"changed")
    assert other.read(b"third") == b"changed"
    (other.path / "third").rename(sandbox.path.parent / "outside")
    with pytest.raises(SandboxError, match="hard links"):
        tree.write(b"second", b"damage")
    assert (sandbox.path.parent / "outside").read_bytes() == b"changed"
    (sandbox.path.parent / "outside").unlink()
    tree.write(b"second", b"fine again")


def test_fifos_sockets_and_devices_are_not_opened(tree: Tree) -> None:
    os.mkfifo(tree.path / "fifo")
    names = [b"fifo"]
    if ROOT:
        os.mknod(tree.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        names.append(b"null")
    for name in names:
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
            with pytest.raises(SandboxError, match="no file"):
                tree.open(name, flags)
        tree.chmod(name, 0o600)
        assert stat.S_IMODE(tree.stat(name).st_mode) == 0o600
        tree.rmtree(name)


@pytest.mark.skipif(not ROOT, reason="only root can mount")
@pytest.mark.parametrize("what", ["directory", "file"])
def test_bind_mounts_are_refused(tree: Tree, production: Production, what: str) -> None:
    if what == "directory":
        tree.mkdir(b"mount")
        outside, path = production.path, b"mount/file"
    else:
        tree.write(b"mount", b"")
        outside, path = production.file, b"mount"
    mounted = subprocess.run(
        ["mount", "--bind", outside, tree.path / "mount"], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        before = production.state()
        for operation in (CONTENT | METADATA).values():
            with pytest.raises(SandboxError, match="mount"):
                operation(tree, path)
        for operation in (NAMES["rmtree"], NAMES["clear"]):
            with pytest.raises((SandboxError, OSError)):
                operation(tree, b"mount")
        with pytest.raises((SandboxError, OSError)):
            tree.clear()
        if what == "directory":
            with pytest.raises(SandboxError, match="mount"):
                list(tree.walk())
        assert production.state() == before
    finally:
        subprocess.run(["umount", tree.path / "mount"], check=True)


def test_a_directory_swapped_with_a_link_lets_nothing_out(
    tree: Tree, production: Production
) -> None:
    exchange = 2  # RENAME_EXCHANGE
    (tree.path / "link").symlink_to(production.path)
    libc = ctypes.CDLL(None)
    pair = (os.fsencode(tree.path / "sub"), os.fsencode(tree.path / "link"))

    def swap_for_ever() -> None:
        while True:
            libc.renameat2(-100, pair[0], -100, pair[1], exchange)

    swapper = multiprocessing.get_context("fork").Process(target=swap_for_ever, daemon=True)
    before = production.state()
    opened = refused = 0
    swapper.start()
    try:
        while opened + refused < 4000 or not (opened > 100 and refused > 100):
            try:
                fd = tree.open(b"sub/file", os.O_WRONLY)
            except SandboxError:
                refused += 1
                continue
            opened += 1
            os.write(fd, b"INSIDE")
            os.close(fd)
    finally:
        swapper.kill()
        swapper.join()
    assert production.state() == before


def test_reading_trees_refuse_every_change(production: Production) -> None:
    tree = Tree.read_only(production.path)
    before = production.state()
    assert tree.read(b"sub/file") == b"more production"
    for operation in (CONTENT | METADATA | NAMES).values():
        with pytest.raises(SandboxError, match="refused"):
            operation(tree, b"file")
    assert production.state() == before


def test_every_operation_does_what_its_name_says(sandbox: Sandbox, tree: Tree) -> None:
    name = b"a\nb\xff"
    tree.write(name, b"one")
    tree.write(name, b"2")
    assert tree.read(name) == b"2"
    tree.chmod(name, 0o4711)
    tree.utime_ns(name, 1_000_000_001, 2_000_000_002)
    tree.setxattr(name, "user.a", b"\0b")
    assert tree.listxattr(name) == ["user.a"]
    assert tree.getxattr(name, "user.a") == b"\0b"
    tree.removexattr(name, "user.a")
    assert tree.listxattr(name) == []
    found = tree.stat(name)
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o4711, 2_000_000_002)
    tree.symlink(b"/nowhere\xff", b"sub/link")
    assert tree.readlink(b"sub/link") == b"/nowhere\xff"
    tree.utime_ns(b"sub/link", 5, 6)
    tree.chown(b"sub/link", os.getuid(), os.getgid())
    assert tree.stat(b"sub/link").st_mtime_ns == 6
    tree.link(b"sub/link", b"sub/link2")
    assert tree.stat(b"sub/link2").st_ino == tree.stat(b"sub/link").st_ino
    tree.rename(name, b"sub/new")
    other = sandbox.tree("other")
    tree.rename(b"sub", b"moved", to=other)
    assert [path for path, _ in other.walk()] == [
        b"moved", b"moved/file", b"moved/link", b"moved/link2", b"moved/new",
    ]  # fmt: skip
    assert other.listdir(b"moved") == [b"file", b"link", b"link2", b"new"]
    assert other.subtree(b"moved").read(b"new") == b"2"
    assert not tree.exists(b"sub") and other.exists(b"moved/link")
    other.rmtree(b"moved/link")
    other.unlink(b"moved/link2")
    other.clear()
    assert list(other.walk()) == []
    other.chmod(b"", 0o2750)
    other.utime_ns(b"", 7, 8)
    assert (stat.S_IMODE(other.stat(b"").st_mode), other.stat(b"").st_mtime_ns) == (0o2750, 8)
    with pytest.raises(SandboxError, match="root"):
        other.rmtree(b"")
    with pytest.raises(FileNotFoundError, match="absent"):
        other.chmod(b"absent", 0o600)


def test_deep_wide_and_unreadable_trees_are_walked_and_removed(sandbox: Sandbox) -> None:
    tree = sandbox.tree("deep")
    deepest = b""
    for _ in range(1200):
        deepest = (deepest + b"/" if deepest else b"") + b"twenty-byte-name----"
        tree.mkdir(deepest)
    tree.write(deepest + b"/file", b"down here")
    assert tree.read(deepest + b"/file") == b"down here"
    assert sum(1 for _ in tree.walk()) == 1201
    wide = sandbox.tree("wide")
    for number in range(3000):
        wide.write(b"%d" % number, b"")
    tree.chmod(deepest[: 21 * 600 - 1], 0o000)
    wide.chmod(b"", 0o500)
    sandbox.destroy()
    assert not sandbox.path.exists()


@pytest.mark.skipif(not ROOT, reason="only root can make files immutable")
def test_immutable_entries_do_not_stop_removal(sandbox: Sandbox, tree: Tree) -> None:
    marked = [tree.path / "sub" / "file", tree.path / "sub"]
    done = subprocess.run(["chattr", "+i", *marked], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no immutable attribute here: {done.stderr.decode().strip()}")
    sandbox.destroy()
    assert not sandbox.path.exists()


def test_a_sandbox_is_private_marked_and_leased(home: Path) -> None:
    with Sandbox.create(home, "monthly") as sandbox:
        found = sandbox.path.stat()
        assert stat.S_IMODE(found.st_mode) == 0o700
        assert sandbox.path.parent == home / "sandboxes"
        marker = json.loads((sandbox.path / ".recovery-sandbox").read_bytes())
        assert marker == {
            "token": sandbox.token, "device": found.st_dev, "inode": found.st_ino,
        }  # fmt: skip
        assert is_alive(home, "monthly") and not is_alive(home, "other")
        assert reap(home, no_reports) == []
        assert sandbox.path.is_dir()
    assert not sandbox.path.exists() and not is_alive(home, "monthly")
    assert list((home / "leases").glob("*.json")) == []
    sandbox.destroy()


@pytest.mark.parametrize("label", ["", "../x", "a/b", ".", "-x", "a b", "x" * 200])
def test_labels_that_are_no_names_are_refused(home: Path, label: str) -> None:
    with pytest.raises(SandboxError, match="name"):
        Sandbox.create(home, label)


def test_homes_that_are_not_ours_are_refused(tmp_path: Path, production: Production) -> None:
    before = production.state()
    with pytest.raises(SandboxError, match="'/'"):
        Sandbox.create(Path("/"), "x")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "sandboxes").symlink_to(production.path)
    with pytest.raises(SandboxError, match="refused"):
        Sandbox.create(linked, "x")
    shared = tmp_path / "shared"
    (shared / "sandboxes").mkdir(parents=True)
    (shared / "sandboxes").chmod(0o777)
    with pytest.raises(SandboxError, match="refused"):
        Sandbox.create(shared, "x")
    assert production.state() == before


# What stands where the sandbox was when it is to be removed.


def copied_marker(path: Path, production: Production) -> None:
    shutil.copy(path / ".recovery-sandbox", production.path / ".recovery-sandbox")
    shutil.rmtree(path)
    production.path.rename(path)


def root_is_a_link(path: Path, production: Production) -> None:
    shutil.copy(path / ".recovery-sandbox", production.path / ".recovery-sandbox")
    shutil.rmtree(path)
    path.symlink_to(production.path)


def no_marker(path: Path, production: Production) -> None:
    (path / ".recovery-sandbox").unlink()


def empty_marker(path: Path, production: Production) -> None:
    (path / ".recovery-sandbox").write_bytes(b"")


def another_token(path: Path, production: Production) -> None:
    marker = path / ".recovery-sandbox"
    marker.write_text(json.dumps(json.loads(marker.read_bytes()) | {"token": "0" * 16}))


def a_file(path: Path, production: Production) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"no directory")


@pytest.mark.parametrize(
    "change", [copied_marker, root_is_a_link, no_marker, empty_marker, another_token, a_file]
)
def test_what_is_not_the_marked_directory_is_never_removed(
    home: Path, production: Production, change: Callable[[Path, Production], None]
) -> None:
    sandbox = Sandbox.create(home, "x")
    sandbox.tree("source").write(b"file", b"data")
    moved_in = change in (copied_marker, root_is_a_link)
    change(sandbox.path, production)
    if moved_in:
        production.path = sandbox.path.resolve()
    before = (
        production.state(),
        sorted(sandbox.path.rglob("*")),
        sandbox.path.lstat().st_mtime_ns,
    )
    with pytest.raises(SandboxError, match="look at it"):
        sandbox.destroy()
    kill_lease(sandbox)
    told: list[str] = []
    assert reap(home, told.append) == []
    assert len(told) == 1 and "look at it" in told[0]
    after = (
        production.state(),
        sorted(sandbox.path.rglob("*")),
        sandbox.path.lstat().st_mtime_ns,
    )
    assert after == before
    assert sandbox.lease.path.exists()


def kill_lease(sandbox: Sandbox) -> None:
    """Drop the lease's lock as the kernel would if its owner were killed."""
    lease_module.close_held(sandbox.lease._fd)


def forged(home: Path, production: Production, *lines: object) -> Path:
    with Sandbox.create(home, "made"):
        pass
    token = "f" * 16
    path = home / "leases" / f"{token}.json"
    owner = {"token": token, "label": "x", "pid": 1, "started": 1}
    path.write_text("".join(json.dumps(line) + "\n" for line in (owner, *lines)))
    return path


@pytest.mark.parametrize(
    "name", ["/", "production", "home", "home/sandboxes", "home/sandboxes/x-0"]
)
def test_a_lease_that_names_another_directory_is_reported(
    home: Path, tmp_path: Path, production: Production, name: str
) -> None:
    found = (tmp_path / name).stat() if (tmp_path / name).exists() else production.path.stat()
    line = {"kind": "directory", "name": str(tmp_path / name), "device": found.st_dev}
    path = forged(home, production, line | {"inode": found.st_ino})
    before = production.state()
    told: list[str] = []
    assert reap(home, told.append) == []
    assert len(told) == 1 and "no sandbox" in told[0]
    assert production.state() == before and path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"not json\n",
        b"[]\n",
        b"{}\n",
        b'{"token": "another", "label": "x"}\n',
        b'{"token": "ffffffffffffffff", "label": "x"}\nnot json\n',
        b'{"token": "ffffffffffffffff", "label": "x"}\n{"kind": "directory"}\n',
        b'{"token": "ffffffffffffffff", "label": "x"}\n{"kind": "moon", "name": "x"}\n',
        b'{"token": "ffffffffffffffff", "label": "x"}\n{"kind": "process", "name": "1"}\n',
        b'{"token": "ffffffffffffffff", "label": "x"}\n{"kind": "process", "name": "one"}\n',
    ],
)
def test_a_broken_lease_is_reported_and_kept(
    home: Path, production: Production, content: bytes
) -> None:
    path = forged(home, production)
    path.write_bytes(content)
    told: list[str] = []
    assert reap(home, told.append) == []
    assert len(told) == 1
    assert path.read_bytes() == content


def test_an_unfinished_last_line_names_nothing(home: Path, production: Production) -> None:
    path = forged(home, production)
    with path.open("ab") as file:
        file.write(b'{"kind": "directory", "na')
    assert reap(home, no_reports) == []
    assert not path.exists()


def test_a_directory_without_a_lease_is_reported_and_kept(home: Path) -> None:
    with Sandbox.create(home, "x"):
        stranger = home / "sandboxes" / "x-0123456789abcdef"
        stranger.mkdir()
        (stranger / "file").write_bytes(b"whose?")
        told: list[str] = []
        assert reap(home, told.append) == []
        assert len(told) == 1 and str(stranger) in told[0]
    assert (stranger / "file").read_bytes() == b"whose?"


def test_a_failed_creation_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Tree, relative: bytes, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tree, "write", full)
    with pytest.raises(OSError, match="No space"):
        Sandbox.create(home, "x")
    assert leftovers(home) == []


def leftovers(home: Path) -> list[Path]:
    return [*(home / "leases").glob("*.json"), *(home / "sandboxes").glob("*")]


def test_killed_at_every_line_of_a_sandbox_nothing_is_left(in_memory: Path) -> None:
    """A child is killed with SIGKILL when it comes to a line of the sandbox's own code.

    For each line that a sandbox's life passes, at the first and at the second time.
    """
    home = in_memory
    package = str(Path(sandbox_module.__file__).parent)

    def life(at_line: Callable[[tuple[str, int]], None]) -> None:
        def trace(frame: FrameType, event: str, argument: object) -> Any:
            if not frame.f_code.co_filename.startswith(package):
                return None
            if event == "line":
                at_line((frame.f_code.co_filename, frame.f_lineno))
            return trace

        sys.settrace(trace)
        try:
            with Sandbox.create(home, "mortal") as sandbox:
                tree = sandbox.tree("source")
                tree.mkdir(b"sub")
                tree.write(b"sub/file", b"data")
        finally:
            sys.settrace(None)

    passed: Counter[tuple[str, int]] = Counter()
    life(lambda line: passed.update([line]))
    killed = 0
    for line, times in passed.items():
        for occurrence in range(1, min(times, 2) + 1):
            child = os.fork()
            if child == 0:
                seen: Counter[tuple[str, int]] = Counter()

                def kill_here(here: tuple[str, int], seen: Counter[tuple[str, int]] = seen) -> None:
                    seen.update([here])
                    if seen[line] == occurrence:  # noqa: B023 (used at once)
                        os.kill(os.getpid(), signal.SIGKILL)

                try:
                    life(kill_here)
                finally:
                    os._exit(0)
            killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            assert not is_alive(home, "mortal")
            reap(home, no_reports)
            assert leftovers(home) == [], f"killed at {line}, time {occurrence}"
    assert killed > 250


CHILD = textwrap.dedent(
    """
    import json, os, subprocess, sys
    from pathlib import Path
    from recovery_pipelines.sandbox import Sandbox

    sandbox = Sandbox.create(Path(sys.argv[1]), "victim")
    tree = sandbox.tree("source")
    for number in range(200):
        tree.write(b"%d" % number, b"data")
    sleep = ["sleep", "600"]
    carrying = {"PATH": os.environ["PATH"]} | sandbox.environment
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    plain = subprocess.Popen(sleep, env=carrying, **quiet)
    leased = subprocess.Popen(sleep, **quiet)
    sandbox.lease.add_process(leased.pid)
    stranger = subprocess.Popen(sleep, **quiet)
    daemon = subprocess.run(
        ["setsid", "sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"],
        env=carrying, capture_output=True, check=True,
    )
    ready, tell = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(tell, b".")
        sys.stdin.read()  # a forked worker must not keep the lease alive
        os._exit(0)
    os.read(ready, 1)
    pids = {"plain": plain.pid, "leased": leased.pid, "daemon": int(daemon.stdout)}
    made = {"path": str(sandbox.path), "pids": pids, "stranger": stranger.pid}
    print(json.dumps(made), flush=True)
    sys.stdin.read()
    """
)


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in (b"Z", b"X")


def test_after_sigkill_the_reaper_leaves_no_process_and_no_file(home: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdin is not None
    made = json.loads(child.stdout.readline())
    try:
        assert is_alive(home, "victim")
        assert reap(home, no_reports) == []
        assert all(lives(pid) for pid in made["pids"].values())
        child.kill()
        child.wait()
        assert not is_alive(home, "victim")
        assert all(lives(pid) for pid in made["pids"].values())
        removed = reap(home, no_reports)
        assert {f"process {pid}" for pid in made["pids"].values()} < set(removed)
        assert f"directory {made['path']}" in removed
        assert not any(lives(pid) for pid in made["pids"].values())
        assert lives(made["stranger"]), "a process that no lease names was killed"
        assert leftovers(home) == []
        assert reap(home, no_reports) == []
    finally:
        child.stdin.close()
        os.kill(made["stranger"], signal.SIGKILL)


def test_killed_at_random_instants_while_working_nothing_is_left(home: Path) -> None:
    work = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from recovery_pipelines.sandbox import Sandbox

        print("ready", flush=True)
        while True:
            with Sandbox.create(Path(sys.argv[1]), "busy") as sandbox:
                tree = sandbox.tree("source")
                for number in range(20):
                    tree.write(b"%d" % number, b"data")
        """
    )
    rng = random.Random(7)
    for _ in range(10):
        child = subprocess.Popen([sys.executable, "-c", work, home], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        select.select([], [], [], rng.uniform(0, 0.05))  # the random instant
        child.kill()
        child.wait()
        reap(home, no_reports)
        assert leftovers(home) == []


def test_a_process_that_reuses_a_leased_id_is_not_killed(home: Path) -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        sandbox = Sandbox.create(home, "x")
        sandbox.lease.add_process(bystander.pid)
        written = sandbox.lease.path.read_text()
        started = sandbox.lease.record().resources[-1].details["started"]
        sandbox.lease.path.write_text(
            written.replace(f'"started": {started}, "boot"', f'"started": {started - 1}, "boot"')
        )
        sandbox.destroy()
        assert not sandbox.path.exists() and bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_that_has_no_environment_yet_is_waited_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a program is loaded: so it is here at the first two looks, and at times in truth."""
    read, looks = Path.read_bytes, Counter[Path]()

    def two_looks_too_early(path: Path) -> bytes:
        looks[path] += 1
        return b"" if path.name == "environ" and looks[path] <= 2 else read(path)

    with Sandbox.create(home, "x") as sandbox:
        for early in (two_looks_too_early, *(read,) * 40):
            child = subprocess.Popen(["sleep", "600"], env=os.environ | sandbox.environment)
            monkeypatch.setattr(lease_module, "_pids", lambda pid=child.pid: [pid])
            monkeypatch.setattr(Path, "read_bytes", early)
            assert lease_module.kill_strays(sandbox.token) == [child.pid]
            assert child.wait(10) == -signal.SIGKILL
            looks.clear()


def test_a_process_without_any_environment_is_not_waited_for(home: Path) -> None:
    with Sandbox.create(home, "x") as sandbox:
        bystander = subprocess.Popen(["sleep", "600"], env={}, stdout=subprocess.PIPE)
        try:
            assert lease_module.kill_strays(sandbox.token) == []
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.communicate()


def test_reapers_at_once_share_the_work(home: Path) -> None:
    sandboxes = [Sandbox.create(home, f"dead-{number}") for number in range(20)]
    for sandbox in sandboxes:
        sandbox.tree("source").write(b"file", b"data")
    living = Sandbox.create(home, "living")
    for sandbox in sandboxes:
        kill_lease(sandbox)
    start = threading.Barrier(4)

    def work(_: int) -> list[str]:
        start.wait()
        return reap(home, no_reports)

    with ThreadPoolExecutor(4) as pool:
        removed = [line for lines in pool.map(work, range(4)) for line in lines]
    assert sorted(removed) == sorted(f"directory {sandbox.path}" for sandbox in sandboxes)
    assert leftovers(home) == [living.lease.path, living.path]
    living.destroy()


def test_a_probe_of_the_leases_and_a_reaper_do_not_meet(home: Path) -> None:
    """While one looks whether owners live, its own locks must not look like living owners."""
    sandbox = Sandbox.create(home, "x")
    kill_lease(sandbox)
    removed: list[str] = []
    reaper = threading.Thread(target=lambda: removed.extend(reap(home, no_reports)))
    with survey(home) as leases, dead(leases[0]) as probe:
        assert probe is not None
        reaper.start()
        reaper.join(0.1)
        assert reaper.is_alive()
    reaper.join()
    assert removed == [f"directory {sandbox.path}"]


def test_a_forked_child_neither_holds_nor_destroys_the_sandbox(home: Path) -> None:
    with Sandbox.create(home, "x") as sandbox:
        child = os.fork()
        if child == 0:
            sandbox.destroy()
            os._exit(0)
        os.waitpid(child, 0)
        assert sandbox.path.is_dir() and is_alive(home, "x")


def test_an_exclusive_lock_has_one_holder_and_ends_with_it(home: Path) -> None:
    hold = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from recovery_pipelines.sandbox import exclusive

        with exclusive(Path(sys.argv[1]), "drill", 0):
            print("held", flush=True)
            sys.stdin.read()
        """
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    waited_for: list[str] = []
    with (
        pytest.raises(RecoveryError, match=f"process {holder.pid}"),
        exclusive(home, "drill", 0.2, waited_for.append),
    ):
        raise AssertionError("two holders")
    assert waited_for == [f"process {holder.pid}"]
    with exclusive(home, "another", 0):
        pass

    def end_the_holder(_: str) -> None:
        holder.kill()

    with exclusive(home, "drill", 30, end_the_holder):
        holder.wait()
    with exclusive(home, "drill", 0):
        pass
