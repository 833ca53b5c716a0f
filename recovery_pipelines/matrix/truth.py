"""What a tree is, found out without any code of the project, so that its verdicts can be judged.

Plain `os` calls and SHA-256. Nothing here shares code with manifests, checks or engines.
"""

import hashlib
import os
import stat
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """Everything about one entry that a restore has to bring back."""

    mode: int
    """With the type."""
    owner: tuple[int, int]
    mtime_ns: int
    content: str
    """SHA-256 of a file, else empty."""
    target: bytes
    device: int
    xattrs: tuple[tuple[str, bytes], ...]
    names: tuple[bytes, ...]
    """All paths of a file with several names, else nothing."""


Truth = dict[bytes, Entry]


def look(tree: Path) -> Truth:
    """Every entry of `tree` by its relative path, the root as b"". Raises OSError if it may not."""
    root = os.fsencode(tree)
    found = {b"": os.lstat(root)}
    for folder, directories, files in os.walk(root, onerror=_fail):
        for name in (*directories, *files):
            path = folder + b"/" + name
            found[path.removeprefix(root + b"/")] = os.lstat(path)
    names: dict[int, list[bytes]] = defaultdict(list)
    for path, status in found.items():
        if not stat.S_ISDIR(status.st_mode):
            names[status.st_ino].append(path)
    return {
        path: _entry(root + b"/" + path, status, tuple(sorted(names[status.st_ino])))
        for path, status in found.items()
    }


def _entry(path: bytes, status: os.stat_result, names: tuple[bytes, ...]) -> Entry:
    attributes = sorted(os.listxattr(path, follow_symlinks=False))
    content = Path(os.fsdecode(path)).read_bytes() if stat.S_ISREG(status.st_mode) else None
    is_link = stat.S_ISLNK(status.st_mode)
    return Entry(
        mode=status.st_mode,
        owner=(status.st_uid, status.st_gid),
        mtime_ns=status.st_mtime_ns,
        content="" if content is None else hashlib.sha256(content).hexdigest(),
        target=os.readlink(path) if is_link else b"",  # noqa: PTH115 (a Path would normalise it)
        device=status.st_rdev,
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in attributes),
        names=names if len(names) > 1 else (),
    )


def _fail(error: OSError) -> None:
    raise error
