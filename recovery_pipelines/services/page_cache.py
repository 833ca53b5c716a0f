"""A file system that loses what was not synced, for those who may not mount an image.

Services work on a tree in memory, the page cache; what they sync is carried over into a folder, the
disk. Killing this process is the power cut. As on ext4, a sync of one file also puts on disk every
change of names and modes and that files were cut short, and no content but that file's. The memory
has a size, and with it the file system. It needs /dev/fuse and libfuse.
"""

import errno
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recovery_pipelines.errors import ServiceError
from recovery_pipelines.namespaces import mount
from recovery_pipelines.tools import find_tool, run_tool

_PAGE_BYTES = 4096
_SYNC_ALL = "user.recovery.sync"
"""Setting this attribute of the root syncs everything: FUSE has no syncfs."""
_ORPHANS = ".fuse_hidden*"
"""What libfuse calls files that are open and have lost their name."""
_MOUNT_TIMEOUT_SECONDS = 20.0
_STATUS = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")


def why_no_page_cache() -> str:
    """Empty where such a file system can be mounted inside namespaces of our own."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError, AttributeError) as error:
        return f"libfuse is missing (install fuse3): {error}"
    return ""


@dataclass(frozen=True)
class CachedVolume:
    """Such a file system, mounted."""

    mount_point: Path
    server: subprocess.Popen[bytes]

    def cut(self) -> tuple[float, float]:
        """Lose everything that was not synced; monotonic times before and after."""
        before = time.monotonic()
        self.server.kill()
        self.server.wait()
        return before, time.monotonic()

    def sync(self) -> None:
        """Put everything on disk. Raises OSError."""
        os.setxattr(self.mount_point, _SYNC_ALL, b"")


def mount_page_cache(disk: Path, memory: Path, mount_point: Path, size_bytes: int) -> CachedVolume:
    """Mount what is on `disk`, with `memory` (an empty folder) as its page cache, which holds
    `size_bytes` and no more.

    Raises ServiceError where that fails.
    """
    for orphan in disk.rglob(_ORPHANS):
        orphan.unlink()
    mount("-t", "tmpfs", "-o", f"mode=700,size={size_bytes}", "tmpfs", memory)
    # What is a hole in memory may be zeros on disk, and must fit again.
    copied = run_tool([find_tool("cp"), "--archive", "--sparse=always", "--", f"{disk}/.", memory])
    if copied.returncode:
        raise ServiceError(f"{disk} cannot be read: {copied.complaint}")
    before = mount_point.stat().st_dev
    command = [sys.executable, "-m", __name__, str(disk), str(memory), str(mount_point)]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    deadline = time.monotonic() + _MOUNT_TIMEOUT_SECONDS
    while mount_point.stat().st_dev == before:
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            raise ServiceError(f"{mount_point}: no file system could be mounted with FUSE")
        time.sleep(0.01)
    return CachedVolume(mount_point, server)


class _Changes:
    """What is in memory, and not yet on disk."""

    def __init__(self, disk: str, memory: str) -> None:
        self.disk, self.memory = disk, memory
        self._names: list[Callable[[str], object]] = []
        self._pages: dict[int, set[int]] = defaultdict(set)
        """The pages that differ, by inode in memory."""

    def change(self, act: Callable[[str], object]) -> None:
        """Change names, modes or owners, or cut short: `act` is given the root of the tree to do it
        in."""
        act(self.memory)
        self._names.append(act)

    def written(self, inode: int, offset: int, size_bytes: int) -> None:
        last = offset + max(size_bytes, 1) - 1
        self._pages[inode].update(range(offset // _PAGE_BYTES, last // _PAGE_BYTES + 1))

    def grown(self, inode: int, old_bytes: int, new_bytes: int) -> None:
        if new_bytes > old_bytes:
            self.written(inode, old_bytes, new_bytes - old_bytes)

    def sync_names(self) -> None:
        for act in self._names:
            act(self.disk)
        self._names.clear()

    def sync(self, path: str) -> None:
        """Put one file (a path in memory) on disk, and all names."""
        self.sync_names()
        pages = self._pages.pop(os.stat(path).st_ino, None)
        if pages is None:
            return
        source = os.open(path, os.O_RDONLY)
        target = os.open(self.disk + path.removeprefix(self.memory), os.O_WRONLY)
        try:
            for page in sorted(pages):
                content = os.pread(source, _PAGE_BYTES, page * _PAGE_BYTES)
                os.pwrite(target, content, page * _PAGE_BYTES)
            os.ftruncate(target, os.fstat(source).st_size)
        finally:
            os.close(source)
            os.close(target)

    def sync_all(self) -> None:
        self.sync_names()
        for folder, _folders, names in os.walk(self.memory):
            for name in names:
                path = f"{folder}/{name}"
                if os.lstat(path).st_ino in self._pages:
                    self.sync(path)


class _Operations:
    """What the kernel asks for; paths begin with / at the mount point."""

    use_ns = True
    flag_nopath = flag_nullpath_ok = True
    """An open file is known by its number: it may have been renamed since."""

    def __init__(self, disk: str, memory: str, caller: Callable[[], tuple[int, int, int]]) -> None:
        self._changes = _Changes(disk, memory)
        self._memory = memory
        self._caller = caller

    # --- looking ------------------------------------------------------------------------

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        found = os.fstat(fh) if path is None and fh else os.lstat(f"{self._memory}{path}")
        times = {
            f"st_{kind}": getattr(found, f"st_{kind}_ns") for kind in ("atime", "mtime", "ctime")
        }
        return {name: getattr(found, name) for name in _STATUS} | times

    def readlink(self, path: str) -> str:
        return os.readlink(self._memory + path)

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._memory)
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}

    def opendir(self, path: str) -> int:
        return os.open(self._memory + path, os.O_RDONLY | os.O_DIRECTORY)

    def readdir(self, _path: str | None, fh: int) -> list[str]:
        return [".", "..", *os.listdir(fh)]

    def releasedir(self, _path: str | None, fh: int) -> int:
        os.close(fh)
        return 0

    # --- names, modes and owners --------------------------------------------------------

    def _make(self, path: str, make: Callable[[str], object]) -> None:
        uid, gid, _pid = self._caller()

        def act(root: str) -> None:
            make(root + path)
            os.lchown(root + path, uid, gid)

        self._changes.change(act)

    def mkdir(self, path: str, mode: int) -> int:
        self._make(path, lambda made: os.mkdir(made, mode))
        return 0

    def symlink(self, path: str, target: str) -> int:
        self._make(path, lambda made: os.symlink(target, made))
        return 0

    def link(self, new: str, old: str) -> int:
        self._changes.change(lambda root: os.link(root + old, root + new, follow_symlinks=False))
        return 0

    def rename(self, old: str, new: str) -> int:
        self._changes.change(lambda root: os.rename(root + old, root + new))
        return 0

    def unlink(self, path: str) -> int:
        self._changes.change(lambda root: os.unlink(root + path))
        return 0

    def rmdir(self, path: str) -> int:
        self._changes.change(lambda root: os.rmdir(root + path))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self._changes.change(lambda root: os.chmod(root + path, mode))
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        self._changes.change(lambda root: os.lchown(root + path, uid, gid))
        return 0

    def utimens(self, path: str, times: tuple[int, int]) -> int:
        self._changes.change(lambda root: os.utime(root + path, ns=times, follow_symlinks=False))
        return 0

    # --- content ------------------------------------------------------------------------

    def create(self, path: str, mode: int, flags: int) -> int:
        def make(made: str) -> None:
            os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))

        self._make(path, make)
        return self.open(path, flags & ~(os.O_CREAT | os.O_EXCL))

    def open(self, path: str, flags: int) -> int:
        if flags & os.O_TRUNC:
            self.truncate(path, 0)
        # The kernel says where to write, also when appending.
        return os.open(self._memory + path, flags & ~(os.O_TRUNC | os.O_APPEND))

    def read(self, _path: str | None, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, _path: str | None, data: bytes, offset: int, fh: int) -> int:
        found = os.fstat(fh)
        self._changes.grown(found.st_ino, found.st_size, offset)
        self._changes.written(found.st_ino, offset, len(data))
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, _fh: int | None = None) -> int:
        found = os.stat(self._memory + path)
        if length < found.st_size:
            self._changes.change(lambda root: _cut_short(root + path, length))
        else:
            os.truncate(self._memory + path, length)
            self._changes.grown(found.st_ino, found.st_size, length)
        return 0

    def fallocate(self, _path: str | None, mode: int, offset: int, size: int, fh: int) -> int:
        if mode:
            raise OSError(errno.EOPNOTSUPP, "space is only added")
        found = os.fstat(fh)
        os.posix_fallocate(fh, offset, size)
        self._changes.grown(found.st_ino, found.st_size, offset + size)
        return 0

    def release(self, _path: str | None, fh: int) -> int:
        os.close(fh)
        return 0

    # --- syncing ------------------------------------------------------------------------

    def fsync(self, _path: str | None, _datasync: int, fh: int) -> int:
        self._changes.sync(os.readlink(f"/proc/self/fd/{fh}"))
        return 0

    def fsyncdir(self, _path: str | None, _datasync: int, _fh: int) -> int:
        self._changes.sync_names()
        return 0

    def setxattr(self, path: str, name: str, _value: bytes, *_options: int) -> int:
        if (path, name) != ("/", _SYNC_ALL):
            raise OSError(errno.ENOTSUP, "no attributes here")
        self._changes.sync_all()
        return 0


def _cut_short(path: str, length: int) -> None:
    if os.stat(path).st_size > length:
        os.truncate(path, length)


def _serve(disk: str, memory: str, mount_point: str) -> None:
    import mfusepy

    os.umask(0)  # the kernel has applied the caller's
    operations = _Operations(disk, memory, mfusepy.fuse_get_context)
    mfusepy.FUSE(
        operations,
        mount_point,
        foreground=True,
        nothreads=True,
        allow_other=True,
        default_permissions=True,
    )


if __name__ == "__main__":
    _serve(*sys.argv[1:])
