"""The process that reads a part of a tree for `capture`: it lists, reads and hashes, nothing else.

It runs as a child of the capturing process and speaks in frames over stdin and stdout (eight
bytes of length, then `marshal`). It imports little, so that it starts in a few milliseconds, and
it ends when its parent ends (end of file on stdin, broken pipe on stdout).
"""

import errno
import gc
import marshal
import mmap
import os
import resource
import signal
import stat
import struct
import sys
from typing import Any, BinaryIO

import xxhash

FIELDS = (
    ("path_id", "Q"),
    ("size", "q"),
    ("mtime_ns", "q"),
    ("dev", "Q"),
    ("ino", "Q"),
    ("device", "Q"),
    ("mode", "I"),
    ("links", "I"),
    ("uid", "I"),
    ("gid", "I"),
    ("path_length", "I"),
    ("target_length", "I"),
    ("error_length", "I"),
    ("known", "I"),
    ("content", "16s"),
    ("xattr", "16s"),
)
"""The fixed part of a row, as (name, struct code); path, target and error follow in blobs."""

STAT_KNOWN, CONTENT_KNOWN, XATTR_KNOWN = 1, 2, 4

_RECORD = struct.Struct("<" + "".join(code for _, code in FIELDS))
RECORD_BYTES = _RECORD.size
_SMALL_BYTES = 128 << 10
_LARGE_BYTES = 8 << 20
_BUFFER_BYTES = 1 << 20
_REPORT_BYTES = 256 << 20
_CHUNK_NAMES = 2048
_NO_XATTRS = xxhash.xxh3_128_digest(b"")
_CHANGED = b"changed while it was read"
_TIMES = 1 << 63
_NO_TIME = b"its time is further away than 292 years from 1970"
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_NOATIME | os.O_CLOEXEC


def send(pipe: BinaryIO, message: Any) -> None:
    """Write one frame."""
    payload = marshal.dumps(message)
    pipe.write(struct.pack("<Q", len(payload)) + payload)
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """Read one frame; EOFError if the other side has gone."""
    header = pipe.read(8)
    payload = pipe.read(struct.unpack("<Q", header)[0]) if len(header) == 8 else b""
    if not payload:
        raise EOFError
    return marshal.loads(payload)


def _describe(problem: OSError, action: str) -> bytes:
    name = errno.errorcode.get(problem.errno or 0, "EIO")
    return f"{name}: cannot {action}: {os.strerror(problem.errno or 0)}".encode()


def _open(name: bytes, flags: int, dir_fd: int) -> int:
    """Open without touching the access time where we may (owner or root)."""
    try:
        return os.open(name, flags, dir_fd=dir_fd)
    except PermissionError as problem:
        if problem.errno != errno.EPERM:
            raise
        return os.open(name, flags & ~os.O_NOATIME, dir_fd=dir_fd)


def _open_directory(root: int, path: bytes) -> int:
    """Open a directory by its path below `root`, however long that path is."""
    here = os.dup(root)
    rest = path
    while len(rest) > 4000:
        cut = rest.rindex(b"/", 0, 4000)
        deeper = _open(rest[:cut], _DIRECTORY_FLAGS, here)
        os.close(here)
        here, rest = deeper, rest[cut + 1 :]
    try:
        return _open(rest or b".", _DIRECTORY_FLAGS, here)
    finally:
        os.close(here)


def _xattr_digest(target: int | bytes, names: list[str]) -> bytes:
    """xxh3_128 over all extended attributes (ACLs are among them), sorted by name."""
    if not names:
        return _NO_XATTRS
    follow = isinstance(target, int)
    parts: list[bytes] = []
    for name in sorted(names):
        key = os.fsencode(name)
        value = os.getxattr(target, name, follow_symlinks=follow)
        parts += (struct.pack("<II", len(key), len(value)), key, value)
    return xxhash.xxh3_128_digest(b"".join(parts))


def _xattr_names(target: int | bytes) -> list[str]:
    try:
        return os.listxattr(target, follow_symlinks=isinstance(target, int))
    except OSError as problem:
        if problem.errno == errno.EOPNOTSUPP:
            return []
        raise


class Worker:
    """Answers requests about the tree behind the directory `root_fd`."""

    def __init__(self, root_fd: int, replies: BinaryIO) -> None:
        self._root = root_fd
        self._replies = replies
        self._buffer = mmap.mmap(-1, _BUFFER_BYTES)  # page-aligned: read() is twice as fast
        self._view = memoryview(self._buffer)
        self._cold = False
        self._start_reply()

    def _start_reply(self) -> None:
        self._records: list[bytes] = []
        self._paths: list[bytes] = []
        self._targets: list[bytes] = []
        self._errors: list[bytes] = []
        self._directories: list[bytes] = []
        self._deferred: list[tuple[str, int, bytes, bytes]] = []
        self._listed = 0
        self._files = 0
        self._bytes = 0

    def answer(self, request: tuple[str, bytes, bytes]) -> None:
        """Do one request, (kind, directory, names joined by NUL), and send its reply.

        `scan` lists the directories `names`; `files` and `large` read files of `directory`.
        """
        kind, directory, joined = request
        names = joined.split(b"\0")
        self._start_reply()
        before = resource.getrusage(resource.RUSAGE_SELF)
        if kind == "scan":
            for path in names:
                self._scan(path)
        else:
            self._files_of(directory, names, large=kind == "large")
        after = resource.getrusage(resource.RUSAGE_SELF)
        waits = after.ru_nvcsw - before.ru_nvcsw + after.ru_inblock - before.ru_inblock
        self._cold = waits > 16 + len(self._records) / 8
        send(
            self._replies,
            (
                b"".join(self._records),
                b"".join(self._paths),
                b"".join(self._targets),
                b"".join(self._errors),
                self._directories,
                self._deferred,
                self._listed,
                self._files,
                self._bytes,
                self._cold,
            ),
        )

    def _row(
        self,
        path: bytes,
        found: os.stat_result | None,
        content: bytes | None = None,
        xattr: bytes | None = None,
        target: bytes = b"",
        error: bytes = b"",
    ) -> None:
        known = CONTENT_KNOWN if content is not None else 0
        known |= XATTR_KNOWN if xattr is not None else 0
        size = mtime_ns = dev = ino = device = mode = links = uid = gid = 0
        if found is not None and not -_TIMES <= found.st_mtime_ns < _TIMES:
            found, error = None, _NO_TIME
        if found is not None:
            known |= STAT_KNOWN
            mode = found.st_mode
            size = found.st_size if stat.S_ISREG(mode) else 0
            device = found.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0
            mtime_ns, dev, ino = found.st_mtime_ns, found.st_dev, found.st_ino
            links, uid, gid = found.st_nlink, found.st_uid, found.st_gid
        self._records.append(
            _RECORD.pack(
                xxhash.xxh3_64_intdigest(path),
                size,
                mtime_ns,
                dev,
                ino,
                device,
                mode,
                links,
                uid,
                gid,
                len(path),
                len(target),
                len(error),
                known,
                content or b"",
                xattr or b"",
            )
        )
        self._paths.append(path)
        if target:
            self._targets.append(target)
        if error:
            self._errors.append(error)

    def _scan(self, path: bytes) -> None:
        """Rows of the directory itself and of what is in it, subdirectories excepted."""
        try:
            fd = _open_directory(self._root, path)
        except OSError as problem:
            self._unopened(path, _describe(problem, "open"))
            return
        try:
            self._scan_open(path, fd)
        finally:
            os.close(fd)

    def _scan_open(self, path: bytes, fd: int) -> None:
        prefix = path + b"/" if path else b""
        error = b""
        xattr = None
        files: list[tuple[int, bytes]] = []
        others: list[bytes] = []
        before = os.fstat(fd)
        try:
            xattr = _xattr_digest(fd, _xattr_names(fd))
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = entry.name.encode("utf-8", "surrogateescape")
                    if entry.is_file(follow_symlinks=False):
                        files.append((entry.inode(), name))
                    elif entry.is_dir(follow_symlinks=False):
                        self._directories.append(prefix + name)
                    else:
                        others.append(name)
                    self._listed += 1
        except OSError as problem:
            error = _describe(problem, "list")
        for name in others:
            self._other(prefix + name, name, fd)
        if self._cold:
            files.sort()
        names = [name for _, name in files]
        for start in range(_CHUNK_NAMES, len(names), _CHUNK_NAMES):
            chunk = names[start : start + _CHUNK_NAMES]
            self._deferred.append(("files", 0, path, b"\0".join(chunk)))
        self._read_files(prefix, names[:_CHUNK_NAMES], fd, large=False)
        after = os.fstat(fd)
        if not error and after.st_ctime_ns != before.st_ctime_ns:
            error = b"changed while it was listed"
        self._row(path, before, xattr=xattr, error=error)

    def _unopened(self, path: bytes, error: bytes) -> None:
        """The row of a directory that cannot be opened; its metadata may still be had."""
        parent, _, name = path.rpartition(b"/")
        found = None
        try:
            fd = _open_directory(self._root, parent)
            try:
                found = os.stat(name or b".", dir_fd=fd, follow_symlinks=False)
            finally:
                os.close(fd)
        except OSError:
            pass
        self._row(path, found, error=error)

    def _files_of(self, directory: bytes, names: list[bytes], *, large: bool) -> None:
        prefix = directory + b"/" if directory else b""
        try:
            fd = _open_directory(self._root, directory)
        except OSError as problem:
            for name in names:
                self._row(prefix + name, None, error=_describe(problem, "open"))
            return
        try:
            self._read_files(prefix, names, fd, large=large)
        finally:
            os.close(fd)

    def _other(self, path: bytes, name: bytes, dir_fd: int, error: bytes = b"") -> None:
        """The row of an entry that has no content to read, or whose content cannot be read."""
        found = xattr = None
        target = b""
        try:
            found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                target = os.readlink(name, dir_fd=dir_fd)
            link = b"/proc/self/fd/%d/%s" % (dir_fd, name)
            xattr = _xattr_digest(link, _xattr_names(link))
            if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
                error = error or b"changed its type while it was read"
        except OSError as problem:
            error = error or _describe(problem, "read its metadata")
        self._row(path, found, xattr=xattr, target=target, error=error)

    def _prefetch(self, names: list[bytes], dir_fd: int) -> None:
        """Let the kernel fetch all files of a directory at once instead of one by one."""
        for name in names:
            try:
                fd = _open(name, _FILE_FLAGS, dir_fd)
            except OSError:
                continue
            os.posix_fadvise(fd, 0, _BUFFER_BYTES, os.POSIX_FADV_WILLNEED)
            os.close(fd)

    def _read_files(self, prefix: bytes, names: list[bytes], dir_fd: int, *, large: bool) -> None:
        """Rows of regular files; the hot loop."""
        if self._cold and not large:
            self._prefetch(names, dir_fd)
        pack, path_id = _RECORD.pack, xxhash.xxh3_64_intdigest
        digest_of, fstat, read = xxhash.xxh3_128_digest, os.fstat, os.read
        listxattr, close, open_file = os.listxattr, os.close, os.open
        records, paths = self._records.append, self._paths.append
        all_known = STAT_KNOWN | CONTENT_KNOWN | XATTR_KNOWN
        for name in names:
            path = prefix + name
            try:
                fd = open_file(name, _FILE_FLAGS, dir_fd=dir_fd)
            except OSError:
                try:
                    fd = _open(name, _FILE_FLAGS, dir_fd)
                except OSError as problem:
                    self._other(path, name, dir_fd, _describe(problem, "open"))
                    continue
            try:
                before = fstat(fd)
                mode = before.st_mode
                size = before.st_size
                if size > _SMALL_BYTES or mode & 0o170000 != stat.S_IFREG:
                    self._slow_file(path, name, fd, dir_fd, before, large)
                    continue
                data = read(fd, size + 1)
                if len(data) != size or listxattr(fd):
                    os.lseek(fd, 0, os.SEEK_SET)
                    self._slow_file(path, name, fd, dir_fd, before, large)
                    continue
                after = fstat(fd)
                mtime_ns = after.st_mtime_ns
                if after.st_ctime_ns != before.st_ctime_ns or mtime_ns != before.st_mtime_ns:
                    self._row(path, after, error=_CHANGED)
                    continue
                if not -_TIMES <= mtime_ns < _TIMES:
                    self._row(path, after)
                    continue
            except OSError:
                self._slow_file(path, name, fd, dir_fd, None, large)
                continue
            finally:
                close(fd)
            records(
                pack(
                    path_id(path),
                    size,
                    mtime_ns,
                    after.st_dev,
                    after.st_ino,
                    0,
                    mode,
                    after.st_nlink,
                    after.st_uid,
                    after.st_gid,
                    len(path),
                    0,
                    0,
                    all_known,
                    digest_of(data),
                    _NO_XATTRS,
                )
            )
            paths(path)
            self._files += 1
            self._bytes += size

    def _slow_file(
        self,
        path: bytes,
        name: bytes,
        fd: int,
        dir_fd: int,
        before: os.stat_result | None,
        large: bool,
    ) -> None:
        """The row of an open file that is big, has extended attributes, or makes trouble."""
        try:
            before = before or os.fstat(fd)
        except OSError as problem:
            self._row(path, None, error=_describe(problem, "read"))
            return
        if not stat.S_ISREG(before.st_mode):
            self._other(path, name, dir_fd, b"changed its type while it was read")
            return
        if before.st_size >= _LARGE_BYTES and not large:
            directory = path[: -len(name) - 1]
            self._deferred.append(("large", before.st_size, directory, name))
            return
        content = xattr = None
        error = b""
        action = "read"
        try:
            content, length = self._stream(fd)
            action = "read its extended attributes"
            xattr = _xattr_digest(fd, _xattr_names(fd))
        except OSError as problem:
            error = _describe(problem, action)
        after = os.fstat(fd)
        if content is not None and (
            length != after.st_size
            or after.st_ctime_ns != before.st_ctime_ns
            or after.st_mtime_ns != before.st_mtime_ns
        ):
            content, error = None, _CHANGED
        self._row(path, after, content, xattr, error=error)
        self._files += 1

    def _stream(self, fd: int) -> tuple[bytes, int]:
        """Digest and length of a file's content, read from the start to the end of file."""
        os.lseek(fd, 0, os.SEEK_SET)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        hasher = xxhash.xxh3_128()
        length = reported = 0
        while count := os.readv(fd, [self._buffer]):
            hasher.update(self._view[:count])
            length += count
            if length - reported >= _REPORT_BYTES:
                send(self._replies, length - reported)
                reported = length
        self._bytes += length - reported
        return hasher.digest(), length


def main(root_fd: int) -> None:
    """Answer requests until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # there are no cycles to collect
    worker = Worker(root_fd, sys.stdout.buffer)
    try:
        while True:
            worker.answer(receive(sys.stdin.buffer))
    except (EOFError, BrokenPipeError):
        os._exit(0)
