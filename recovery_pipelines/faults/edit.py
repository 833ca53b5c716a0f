"""Edits in a tree that leave no trace but the wanted one: modes and times are put back.

Shared by the faults and by the changes between increments.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from random import Random

import xxhash

from recovery_pipelines.sandbox import Tree

CHUNK_BYTES = 1 << 20
_LONGEST_NAME_BYTES = 250  # file systems take 255; a few are left for `free_name`


def parent(path: bytes) -> bytes:
    """The directory that holds `path`; the root is b""."""
    return path.rpartition(b"/")[0]


def below(directory: bytes, name: bytes) -> bytes:
    """The path of `name` in `directory`."""
    return directory + b"/" + name if directory else name


def digest(data: bytes) -> str:
    """xxh3_128, hex."""
    return xxhash.xxh3_128_hexdigest(data)


@contextmanager
def unlocked(tree: Tree, path: bytes) -> Iterator[None]:
    """The owner may read and write `path` (enter it, if a directory) inside; the mode is put back.

    A write by an ordinary user also clears set-uid and set-gid: that is put back too.
    """
    before = tree.stat(path).st_mode
    need = 0o700 if stat.S_ISDIR(before) else 0o600
    if before & need != need:
        tree.chmod(path, stat.S_IMODE(before) | need)
    try:
        yield
    finally:
        if tree.stat(path).st_mode != before:
            tree.chmod(path, stat.S_IMODE(before))


@contextmanager
def quiet(tree: Tree, path: bytes) -> Iterator[None]:
    """Like `unlocked`, and the times are put back as well: the silent way to damage."""
    before = tree.stat(path)
    with unlocked(tree, path):
        yield
    tree.utime_ns(path, before.st_atime_ns, before.st_mtime_ns)


@contextmanager
def advancing(tree: Tree, path: bytes, rng: Random) -> Iterator[None]:
    """Like `unlocked`, and afterwards the mtime is 1 to 2 seconds ahead of what it was.

    Not "now", so that it follows from the seed; not further, so that it is not in the future.
    """
    before = tree.stat(path)
    with unlocked(tree, path):
        yield
    mtime_ns = before.st_mtime_ns + rng.randrange(10**9, 2 * 10**9)
    tree.utime_ns(path, mtime_ns, mtime_ns)


def read_range(tree: Tree, path: bytes, offset: int, length: int) -> bytes:
    """Up to `length` bytes of a regular file, fewer only at its end."""
    with os.fdopen(tree.open(path, os.O_RDONLY), "rb") as file:
        file.seek(offset)
        return file.read(length)


def write_range(tree: Tree, path: bytes, offset: int, data: bytes) -> None:
    """Overwrite in place (or write at the end); the file keeps its inode."""
    with os.fdopen(tree.open(path, os.O_WRONLY), "wb") as file:
        file.seek(offset)
        file.write(data)


def read_chunks(tree: Tree, path: bytes) -> Iterator[bytes]:
    """The content of a regular file in pieces of at most 1 MiB."""
    with os.fdopen(tree.open(path, os.O_RDONLY), "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def rewrite(tree: Tree, path: bytes, chunks: Iterable[bytes]) -> None:
    """Replace the content in place; the file keeps its inode, so hard links stay together."""
    with os.fdopen(tree.open(path, os.O_WRONLY | os.O_TRUNC), "wb") as file:
        for chunk in chunks:
            file.write(chunk)


def truncate(tree: Tree, path: bytes, size_bytes: int) -> None:
    """Cut (or extend) a regular file."""
    with os.fdopen(tree.open(path, os.O_WRONLY), "wb") as file:
        file.truncate(size_bytes)


def same_content(tree: Tree, first: bytes, second: bytes) -> bool:
    """Whether two regular files hold the same bytes."""
    if tree.stat(first).st_size != tree.stat(second).st_size:
        return False
    pairs = zip(read_chunks(tree, first), read_chunks(tree, second), strict=True)
    return all(one == other for one, other in pairs)


def with_suffix(path: bytes, suffix: bytes) -> bytes:
    """`path` with its last name extended, or cut where it would be too long for a file system."""
    directory, name = parent(path), path.rpartition(b"/")[2]
    return below(directory, name[: _LONGEST_NAME_BYTES - len(suffix)] + suffix)


def free_name(tree: Tree, path: bytes) -> bytes:
    """`path`, or the first of `path`-2, `path`-3 … that does not exist."""
    candidate, number = path, 1
    while tree.exists(candidate):
        number += 1
        candidate = b"%s-%d" % (path, number)
    return candidate


def directories_above(path: bytes) -> Iterator[bytes]:
    """The directories that lead to `path`, nearest first, the root last."""
    while path:
        path = parent(path)
        yield path
