"""A tree: a directory whose entries are reached only through a handle that opens beneath it."""

import array
import contextlib
import fcntl
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path

from recovery_pipelines.errors import SandboxError
from recovery_pipelines.sandbox.beneath import check_name, open_beneath, show

_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_IMMUTABLE_OR_APPEND_ONLY = 0x10 | 0x20

_PATH_HANDLE = os.O_PATH | os.O_NOFOLLOW
_DIRECTORY_HANDLE = os.O_PATH | os.O_DIRECTORY
_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Links:
    """Finds all names of a file inside one sandbox, so that a hard link to the outside shows."""

    def __init__(self, sandbox_root: "Tree") -> None:
        self._root = sandbox_root
        self._names: dict[tuple[int, int], list[bytes]] = {}

    def all_inside(self, found: os.stat_result) -> bool:
        """Whether every one of the file's links is inside the sandbox at this moment."""
        if self._count(found) == found.st_nlink:
            return True
        self._names.clear()
        for path, status in self._root.walk():
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                self._names.setdefault((status.st_dev, status.st_ino), []).append(path)
        return self._count(found) == found.st_nlink

    def _count(self, found: os.stat_result) -> int:
        """Names known from the last walk that are still this file."""
        return sum(
            1 for path in self._names.get((found.st_dev, found.st_ino), []) if self._is(path, found)
        )

    def _is(self, path: bytes, found: os.stat_result) -> bool:
        try:
            now = self._root.stat(path)
        except (OSError, SandboxError):
            return False
        return (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino)


class Tree:
    """A directory, reached only through a handle that opens beneath it.

    All paths are relative bytes; b"" is the tree's root. No method follows a symbolic link,
    crosses a mount, or changes a file that has a hard link outside the sandbox: such attempts
    are a SandboxError. Ordinary failures are OSError. A tree made by `read_only` refuses every
    change.
    """

    def __init__(self, path: Path, fd: int, links: Links | None) -> None:
        """Takes over `fd`, an O_PATH descriptor of the directory `path`."""
        self.path = path
        """For tools that read, back up or restore; never for damaging code."""
        self._fd = fd
        self._links = links
        weakref.finalize(self, os.close, fd)

    def __repr__(self) -> str:
        return f"Tree({str(self.path)!r})"

    @classmethod
    def read_only(cls, path: Path) -> "Tree":
        """Any existing directory, for reading."""
        return cls(path, os.open(path, _DIRECTORY_HANDLE), None)

    # Reading

    def open(self, relative: bytes, flags: int, mode: int = 0) -> int:
        """Open a regular file or a directory; returns a file descriptor.

        FIFOs, sockets and devices are refused, so that opening neither blocks nor acts.
        """
        if flags & _CHANGING:
            self._must_be_writable(relative)
        if flags & os.O_CREAT:
            try:
                return self._open(relative, flags | os.O_EXCL | os.O_NOFOLLOW, mode)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
        with self._handle(relative, changing=bool(flags & _CHANGING)) as handle:
            kind = os.fstat(handle).st_mode
            if stat.S_ISLNK(kind):
                raise SandboxError(f"refused {show(relative)}: it is a link")
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise SandboxError(f"refused {show(relative)}: it is no file and no directory")
            return os.open(_proc(handle), flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))

    def read(self, relative: bytes) -> bytes:
        """The whole content of a file."""
        with os.fdopen(self.open(relative, os.O_RDONLY), "rb") as file:
            return file.read()

    def stat(self, relative: bytes) -> os.stat_result:
        """The entry's own status (of a link, not of where it leads)."""
        with self._handle(relative) as handle:
            return os.fstat(handle)

    def exists(self, relative: bytes) -> bool:
        """Whether the entry is there (a dangling link is)."""
        try:
            self.stat(relative)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def listdir(self, relative: bytes = b"") -> list[bytes]:
        """The names in a directory, sorted."""
        with (
            _closing(self.open(relative, os.O_RDONLY | os.O_DIRECTORY)) as fd,
            os.scandir(fd) as entries,
        ):
            return sorted(os.fsencode(entry.name) for entry in entries)

    def walk(self) -> Iterator[tuple[bytes, os.stat_result]]:
        """Every entry below the root with its lstat: parents first, names sorted per directory.

        A directory that cannot be read is an error, never skipped.
        """
        pending = self._children(b"")
        while pending:
            path, status = pending.pop()
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                pending += self._children(path)

    def subtree(self, relative: bytes) -> "Tree":
        """An existing directory of this tree as a tree of its own."""
        return Tree(
            self.path / os.fsdecode(relative),
            self._open(relative, _DIRECTORY_HANDLE),
            self._links,
        )

    def readlink(self, relative: bytes) -> bytes:
        """Where a symbolic link points."""
        with self._handle(relative) as handle:
            return os.readlink(b"", dir_fd=handle)

    def listxattr(self, relative: bytes) -> list[str]:
        """The names of the entry's own extended attributes."""
        with self._handle(relative) as handle:
            return os.listxattr(_proc(handle))

    def getxattr(self, relative: bytes, name: str) -> bytes:
        """One extended attribute of the entry itself."""
        with self._handle(relative) as handle:
            return os.getxattr(_proc(handle), name)

    # Changing

    def write(self, relative: bytes, data: bytes) -> None:
        """Create or overwrite a file."""
        fd = self.open(relative, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        with os.fdopen(fd, "wb") as file:
            file.write(data)

    def chmod(self, relative: bytes, mode: int) -> None:
        with self._handle(relative, changing=True) as handle:
            Path(_proc(handle)).chmod(mode)

    def chown(self, relative: bytes, uid: int, gid: int) -> None:
        with self._handle(relative, changing=True) as handle:
            os.chown(_proc(handle), uid, gid)

    def utime_ns(self, relative: bytes, atime_ns: int, mtime_ns: int) -> None:
        with self._handle(relative, changing=True) as handle:
            os.utime(_proc(handle), ns=(atime_ns, mtime_ns))

    def setxattr(self, relative: bytes, name: str, value: bytes) -> None:
        with self._handle(relative, changing=True) as handle:
            os.setxattr(_proc(handle), name, value)

    def removexattr(self, relative: bytes, name: str) -> None:
        with self._handle(relative, changing=True) as handle:
            os.removexattr(_proc(handle), name)

    def mkdir(self, relative: bytes, mode: int = 0o777) -> None:
        with self._parent(relative) as (parent, name):
            os.mkdir(name, mode, dir_fd=parent)

    def symlink(self, target: bytes, relative: bytes) -> None:
        with self._parent(relative) as (parent, name):
            os.symlink(target, name, dir_fd=parent)

    def link(self, old: bytes, new: bytes) -> None:
        """A second name for the entry itself, also if it is a symbolic link."""
        with self._parent(old) as (source, old_name), self._parent(new) as (parent, new_name):
            os.link(old_name, new_name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

    def rename(self, old: bytes, new: bytes, to: "Tree | None" = None) -> None:
        """Rename an entry, or move it to `new` in another tree of the same file system."""
        with (
            self._parent(old) as (source, old_name),
            (to or self)._parent(new) as (parent, new_name),
        ):
            os.rename(old_name, new_name, src_dir_fd=source, dst_dir_fd=parent)

    def unlink(self, relative: bytes) -> None:
        with self._parent(relative) as (parent, name):
            os.unlink(name, dir_fd=parent)

    def rmdir(self, relative: bytes) -> None:
        with self._parent(relative) as (parent, name):
            os.rmdir(name, dir_fd=parent)

    def rmtree(self, relative: bytes) -> None:
        """Remove an entry, and all below it if it is a directory, whatever its permissions."""
        directory = stat.S_ISDIR(self.stat(relative).st_mode)
        if directory:
            self.clear(relative)
        with self._parent(relative) as (parent, name):
            _remove(parent, os.fsdecode(name), directory)

    def clear(self, relative: bytes = b"", keep: frozenset[str] = frozenset()) -> None:
        """Remove everything below a directory, except the names `keep` directly in it."""
        levels = [(relative, self._remove_files(relative, keep))]
        while True:
            directories = levels[-1][1]
            if directories:
                name = os.fsencode(directories[-1])
                path = _join(*(part for part, _ in levels), name)
                levels.append((name, self._remove_files(path)))
                continue
            levels.pop()
            if not levels:
                return
            emptied = levels[-1][1].pop()
            with self._handle(_join(*(part for part, _ in levels))) as parent:
                _remove(parent, emptied, directory=True)

    # How entries are reached

    def _must_be_writable(self, relative: bytes) -> Links:
        if self._links is None:
            raise SandboxError(
                f"refused to change {show(relative)} in {self.path}: this tree is for reading only"
            )
        return self._links

    @contextlib.contextmanager
    def _handle(self, relative: bytes, *, changing: bool = False) -> Iterator[int]:
        """An O_PATH descriptor of the entry itself; refuses what must not be changed."""
        links = self._must_be_writable(relative) if changing else None
        with self._named(relative), _closing(self._open(relative, _PATH_HANDLE)) as handle:
            if links is not None:
                found = os.fstat(handle)
                if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                    _must_be_inside(links, found, relative)
            yield handle

    @contextlib.contextmanager
    def _parent(self, relative: bytes) -> Iterator[tuple[int, bytes]]:
        """The directory of an entry to be made, moved or removed, and the entry's name in it."""
        self._must_be_writable(relative)
        check_name(relative)
        directory, _, name = relative.rpartition(b"/")
        if not name:
            raise SandboxError(f"refused: the root of {self.path} cannot be replaced or removed")
        with self._named(relative), _closing(self._open(directory, _DIRECTORY_HANDLE)) as parent:
            yield parent, name

    def _open(self, relative: bytes, flags: int, mode: int = 0) -> int:
        return open_beneath(self._fd, relative, flags, mode)

    @contextlib.contextmanager
    def _named(self, relative: bytes) -> Iterator[None]:
        """Errors name the entry, not the descriptor that it was reached through."""
        try:
            yield
        except OSError as error:
            if error.errno is None:
                raise
            name = str(self.path / os.fsdecode(relative))
            raise OSError(error.errno, error.strerror, name) from None

    def _children(self, relative: bytes) -> list[tuple[bytes, os.stat_result]]:
        """The entries of a directory, last name first."""
        with (
            _closing(self.open(relative, os.O_RDONLY | os.O_DIRECTORY)) as fd,
            self._named(relative),
            os.scandir(fd) as entries,
        ):
            found = [
                (_join(relative, os.fsencode(entry.name)), entry.stat(follow_symlinks=False))
                for entry in entries
            ]
        return sorted(found, key=lambda child: child[0], reverse=True)

    def _remove_files(self, relative: bytes, keep: frozenset[str] = frozenset()) -> list[str]:
        """Remove all but directories from a directory; returns the directories' names."""
        self._must_be_writable(relative)
        directories = []
        with self._named(relative), _closing(self._open(relative, _DIRECTORY_HANDLE)) as handle:
            mode = os.fstat(handle).st_mode
            if os.geteuid() != 0 and mode & stat.S_IRWXU != stat.S_IRWXU:
                Path(_proc(handle)).chmod(stat.S_IMODE(mode) | stat.S_IRWXU)
            with _closing(os.open(_proc(handle), os.O_RDONLY | os.O_DIRECTORY)) as fd:
                with os.scandir(fd) as entries:
                    found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
                for name, directory in found:
                    if name in keep:
                        continue
                    if directory:
                        directories.append(name)
                    else:
                        _remove(fd, name, directory=False)
        return directories


def _must_be_inside(links: Links, found: os.stat_result, relative: bytes) -> None:
    try:
        inside = links.all_inside(found)
    except OSError as error:
        raise SandboxError(
            f"refused to change {show(relative)}: it has {found.st_nlink} hard links, and whether "
            f"all are inside the sandbox cannot be told ({error})"
        ) from None
    if not inside:
        raise SandboxError(
            f"refused to change {show(relative)}: one of its {found.st_nlink} hard links is "
            "outside the sandbox"
        )


def _remove(parent: int, name: str, directory: bool) -> None:
    remove = os.rmdir if directory else os.unlink
    try:
        remove(name, dir_fd=parent)
    except PermissionError:
        _allow_removal(parent, name, directory)
        remove(name, dir_fd=parent)


def _allow_removal(parent: int, name: str, directory: bool) -> None:
    """Clear the immutable and append-only attributes that keep an entry from being removed."""
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    _clear_attributes(os.open(_proc(parent), os.O_RDONLY | os.O_DIRECTORY))
    if directory or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1):
        kind = os.O_DIRECTORY if directory else os.O_NONBLOCK
        _clear_attributes(open_beneath(parent, os.fsencode(name), os.O_RDONLY | kind))


def _clear_attributes(fd: int) -> None:
    with _closing(fd), contextlib.suppress(OSError):
        flags = array.array("L", [0])
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        flags[0] &= ~_IMMUTABLE_OR_APPEND_ONLY
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, flags)


def _join(*parts: bytes) -> bytes:
    return b"/".join(part for part in parts if part)


def _proc(fd: int) -> str:
    """A name that leads to exactly this descriptor's file, for calls that take no descriptor."""
    return f"/proc/self/fd/{fd}"


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
