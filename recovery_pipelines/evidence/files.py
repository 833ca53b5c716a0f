"""Files under evidence: reading them so that nothing is skipped, and changing them so that a kill
or a power cut leaves the old or the new content.

A line that is being appended waits in `<name>.next`, with the size of the file before it: what
stands after that size counts only once it is the whole line.
"""

import hashlib
import logging
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.files import sync

log = logging.getLogger("recovery_pipelines")

_READS = 10
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")


def digests(folder: Path, *, synced: bool = False) -> dict[str, str]:
    """The SHA-256 of every file in `folder`, by name, sorted; with `synced` also made durable.

    Raises EvidenceError for anything but regular files with plain names, OSError for whatever
    cannot be read. Links are not followed, the folder's own name included.
    """
    found = {}
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with os.scandir(directory) as listing:
            names = sorted(entry.name for entry in listing)
        for name in names:
            if not _NAME.fullmatch(name):
                raise EvidenceError(f"{folder} holds {name!r}, which is no name of a result")
            found[name] = _digest(folder, directory, name, synced)
        if synced:
            os.fsync(directory)
    finally:
        os.close(directory)
    return found


def _digest(folder: Path, directory: int, name: str, synced: bool) -> str:
    if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        raise EvidenceError(f"{folder / name} is not a regular file")
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    with os.fdopen(fd, "rb") as file:
        if synced:
            os.fsync(fd)
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, content: bytes, mode: int) -> None:
    """Give `path` its new content whole or not at all. One writer at a time."""
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.unlink(missing_ok=True)
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    rename(unfinished, path)


def append_line(path: Path, line: bytes) -> None:
    """Append `line` and a newline whole or not at all; on disk when this returns. One writer."""
    size = path.stat().st_size
    replace_file(_waiting(path), b"%d\n%b\n" % (size, line), 0o600)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        with os.fdopen(fd, "wb") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(fd)
    except BaseException:
        settle_append(path)
        raise
    # The line is there whatever happens now: the next writer finds it whole.
    with suppress(OSError):
        _waiting(path).unlink()


def settle_append(path: Path) -> None:
    """Finish or undo what a killed `append_line` began. Only for the one writer."""
    begun = _begun(path)
    if begun is None:
        return
    size, line = begun
    with path.open("r+b") as file:
        file.seek(size)
        if file.read() != line:
            file.truncate(size)
        os.fsync(file.fileno())
    _waiting(path).unlink()


def read_lines(path: Path) -> bytes:
    """The content without a line that is being appended at this moment, or was when killed."""
    for _ in range(_READS):
        content = path.read_bytes()
        if content.endswith(b"\n"):
            return content
        begun = _begun(path)
        if begun is not None and begun[0] <= len(content):
            return content[: begun[0]]
    return content


def _begun(path: Path) -> tuple[int, bytes] | None:
    """Size of `path` before the line that waits, and that line; None if none waits."""
    try:
        size, _, line = _waiting(path).read_bytes().partition(b"\n")
        return int(size), line
    except FileNotFoundError:
        return None
    except ValueError:
        raise EvidenceError(f"{_waiting(path)} is broken: put it and the chain back") from None


def _waiting(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")


def rename(source: Path, target: Path) -> None:
    """Rename within a directory and make that durable."""
    source.replace(target)
    try:
        sync(target.parent)
    except OSError as error:
        # The new name is there: to raise would call something undone that is done.
        log.warning("%s may be lost if the power fails now: %s", target, error)
