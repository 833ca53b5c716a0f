"""Files that are whole or absent, whatever kills us: replaced, appended to, put on the disk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, many_writers: bool = False) -> Iterator[Path]:
    """Yields where to write what then takes the place of `path`; `path` stays if the block fails.

    With `many_writers` several processes may do so at once; without it only one may, and what it
    leaves when it is killed is overwritten by the next.
    """
    unfinished = path.with_name(f".{path.name}{f'.{os.getpid()}' if many_writers else ''}")
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: bytes) -> None:
    """Append one line, on disk when this returns; a torn line before it stays on its own."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        data = b"\n" + line if torn else line
        if os.write(fd, data) != len(data):
            os.ftruncate(fd, size)
            raise OSError(f"{path} cannot be written: the disk is full")
        os.fsync(fd)
    finally:
        os.close(fd)


def sync(path: Path) -> None:
    """Put a file's content, or a directory's names, on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
