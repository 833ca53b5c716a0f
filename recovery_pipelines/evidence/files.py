"""Files under evidence: reading them so that nothing is skipped, replacing them so that a kill or
a power cut leaves the old or the new content."""

import hashlib
import logging
import os
import re
import stat
from pathlib import Path

from recovery_pipelines.errors import EvidenceError

log = logging.getLogger("recovery_pipelines")

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


def rename(source: Path, target: Path) -> None:
    """Rename within a directory and make that durable."""
    source.replace(target)
    try:
        sync_directory(target.parent)
    except OSError as error:
        # The new name is there: to raise would call something undone that is done.
        log.warning("%s may be lost if the power fails now: %s", target, error)


def sync_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
