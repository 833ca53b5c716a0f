"""A sandbox: the only place where a drill destroys, made by itself and removed on every way out."""

import contextlib
import errno
import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from recovery_pipelines.errors import SandboxError
from recovery_pipelines.sandbox.lease import (
    ENVIRONMENT_NAME,
    Lease,
    LeaseRecord,
    Resource,
    dead,
    kill_process,
    kill_strays,
    private_directory,
    read_lease,
    survey,
)
from recovery_pipelines.sandbox.tree import Links, Tree
from recovery_pipelines.tools import why_not_confined

_MARKER = ".recovery-sandbox"
_MARKER_NAME = _MARKER.encode()
CGROUPS = Path("/sys/fs/cgroup")
_GROUP_TIMEOUT_SECONDS = 10.0
_log = logging.getLogger(__name__)


class Sandbox:
    """A directory of our own: mode 0700, a marker with a random token, and a lease.

    As a context manager it is destroyed at the end. `create` is the way to make one.
    """

    def __init__(self, path: Path, root: Tree, lease: Lease) -> None:
        self.path = path
        self.token = lease.token
        self.lease = lease
        """Name here what else the drill makes, before it is made."""
        self.namespaces: dict[str, list[str]] = {}
        """By process that was started in namespaces of its own: which kinds it has for itself."""
        self._root = root

    @classmethod
    def create(cls, home: Path, label: str) -> "Sandbox":
        """Make `home`/sandboxes/<label>-<token>, leased to this process."""
        private_directory(home, "sandboxes")
        lease = Lease.create(home, label)
        try:
            path = lease.record().sandbox_path
            lease.add("directory", str(path))
            path.mkdir(mode=0o700)
            root = _open_root(path)
            found = root.stat(b"")
            lease.add("directory", str(path), device=found.st_dev, inode=found.st_ino)
            root.write(_MARKER_NAME, json.dumps(_identity(lease.token, found)).encode())
        except BaseException:
            _remove_all(lease.record())
            lease.release()
            raise
        return cls(path, root, lease)

    @property
    def environment(self) -> dict[str, str]:
        """What every child process must carry, so that it is found if we are killed."""
        return {ENVIRONMENT_NAME: self.token}

    @property
    def isolation(self) -> dict[str, object]:
        """What sets it apart: `directory`, `mode`, `device`, `inode`, `lease`, `namespaces`, and
        `unconfined`: why tools that restore into it could write elsewhere; empty: they could not.
        """
        found = self._root.stat(b"")
        return {
            "directory": self.path.name,
            "mode": f"{stat.S_IMODE(found.st_mode):04o}",
            "device": found.st_dev,
            "inode": found.st_ino,
            "lease": self.lease.path.name,
            "namespaces": self.namespaces,
            "unconfined": why_not_confined(),
        }

    def tree(self, name: str) -> Tree:
        """The tree `name` in this sandbox; its directory (mode 0700) is made if it is absent."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise SandboxError(f"{name!r} cannot name a tree: use letters, digits, '.', '_', '-'")
        with contextlib.suppress(FileExistsError):
            self._root.mkdir(name.encode(), 0o700)
        return self._root.subtree(name.encode())

    def destroy(self) -> None:
        """Kill and remove everything that the lease names, then the lease.

        Nothing happens the second time, or in a forked child.
        """
        if self.lease.owner_pid != os.getpid() or not self.lease.path.exists():
            return
        _remove_all(self.lease.record())
        self.lease.release()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.destroy()


def reap(home: Path, report: Callable[[str], None] = _log.warning) -> list[str]:
    """Remove what dead leases name, and only that; returns what was removed.

    Leases whose owner lives are left alone. What cannot be removed safely (a broken lease, a
    marker that does not match, a sandbox without a lease) is left as it is and told to `report`.
    Several reapers may run at once.
    """
    removed: list[str] = []
    with survey(home) as leases:
        for path in leases:
            with dead(path) as fd:
                if fd is None:
                    continue
                try:
                    removed += _remove_all(read_lease(path, fd))
                    path.unlink()
                except (SandboxError, OSError) as error:
                    report(f"not removed: {error}")
        for directory in sorted(private_directory(home, "sandboxes").iterdir()):
            token = directory.name.rpartition("-")[2]
            if not (home / "leases" / f"{token}.json").exists() and directory.exists():
                report(f"not removed: {directory} has no lease, so it is not known to be ours")
    return removed


def _remove_all(record: LeaseRecord) -> list[str]:
    """Remove what a lease names, the last made first; returns what was there."""
    unknown = {resource.kind for resource in record.resources} - _REMOVERS.keys()
    if unknown:
        raise SandboxError(f"the lease {record.path} names an unknown kind: {', '.join(unknown)}")
    removed = [f"process {pid}" for pid in kill_strays(record.token)]
    for resource in reversed(record.resources):
        if _REMOVERS[resource.kind](record, resource):
            removed.append(f"{resource.kind} {resource.name}")
    return removed


def _remove_directory(record: LeaseRecord, resource: Resource) -> bool:
    """Remove the lease's sandbox if it is the one that was made; False if it is not there."""
    path = record.sandbox_path
    if resource.name != str(path):
        raise SandboxError(f"the lease {record.path} names {resource.name}, which is no sandbox")
    try:
        root = _open_root(path)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        raise SandboxError(f"{path} is no directory, but a link or a file: look at it") from None
    ours = _identity(record.token, root.stat(b""))
    if ours != ours | resource.details:
        raise SandboxError(f"{path} is not the directory that the lease names: look at it")
    marker = root.read(_MARKER_NAME) if root.exists(_MARKER_NAME) else b""
    unfinished = marker == b"" and set(root.listdir()) <= {_MARKER_NAME}
    if not unfinished and _parsed(marker) != ours:
        raise SandboxError(f"{path} does not hold the sandbox's own marker: look at it")
    root.clear(keep=frozenset({_MARKER}))
    if root.exists(_MARKER_NAME):
        root.unlink(_MARKER_NAME)
    path.rmdir()
    return True


def _identity(token: str, found: os.stat_result) -> dict[str, str | int]:
    """What the marker says: a copy of it elsewhere has another device or inode."""
    return {"token": token, "device": found.st_dev, "inode": found.st_ino}


def _parsed(marker: bytes) -> object:
    try:
        return json.loads(marker)
    except ValueError:
        return None


def _open_root(path: Path) -> Tree:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    return Tree(path, fd, Links(Tree(path, os.dup(fd), None)))


def cgroup_name(token: str, name: str) -> str:
    """The only names that a control group of a lease can have."""
    return f"recovery-{token}-{name}"


def _remove_cgroup(record: LeaseRecord, resource: Resource) -> bool:
    """Remove a control group, once its last process has ended; False if it is not there."""
    path = Path(resource.name)
    ours = path.name.startswith(cgroup_name(record.token, ""))
    if not (ours and path.is_relative_to(CGROUPS) and ".." not in path.parts):
        raise SandboxError(f"the lease {record.path} names {path}, which is no group of its own")
    deadline = time.monotonic() + _GROUP_TIMEOUT_SECONDS
    while True:
        try:
            path.rmdir()
            return True
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise SandboxError(f"{path} cannot be removed: {error}") from error
            time.sleep(0.02)


_REMOVERS: dict[str, Callable[[LeaseRecord, Resource], bool]] = {
    "cgroup": _remove_cgroup,
    "directory": _remove_directory,
    "process": lambda record, resource: kill_process(resource),
}
