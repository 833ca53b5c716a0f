"""Leases: what a drill made, written down before it is made, so that it can always be removed.

A lease is `leases/<token>.json` under the data home: one JSON object a line, each fsynced before
the thing that it names is made, and held by flock for the life of the process (the kernel drops
the lock on SIGKILL). The first line names the owner, each later line one resource; a later line
about the same resource adds to it. A last line without its newline was never finished, so what it
would have named was never made.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recovery_pipelines.errors import RecoveryError, SandboxError
from recovery_pipelines.files import sync

ENVIRONMENT_NAME = "RECOVERY_LEASE"
_KILL_TIMEOUT_SECONDS = 10.0
_WITHOUT_MEMORY = 0x4 | 0x00200000
"""Flags of a process that is exiting, or is a thread of the kernel."""

_held_fds: set[int] = set()


def _forget_in_child() -> None:
    """A forked child must not keep its parent's locks alive."""
    for fd in _held_fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    _held_fds.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@dataclass(frozen=True)
class Resource:
    """One thing that a lease names."""

    kind: str
    name: str
    details: dict[str, Any]


@dataclass(frozen=True)
class LeaseRecord:
    """What a lease file says: its owner, and the resources in the order in which they were made."""

    path: Path
    label: str
    resources: list[Resource]

    @property
    def token(self) -> str:
        return self.path.stem

    @property
    def sandbox_path(self) -> Path:
        """Where the lease's sandbox is, and nowhere else."""
        return self.path.parent.parent / "sandboxes" / f"{self.label}-{self.token}"


class Lease:
    """A lease that this process holds. `add` each resource before it is made."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.token = path.stem
        self.owner_pid = os.getpid()
        self._fd = fd
        hold(fd)  # until released, or the end of the process

    @classmethod
    def create(cls, home: Path, label: str) -> "Lease":
        """A new lease in `home`/leases, written, synced and locked."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", label):
            raise SandboxError(
                f"{label!r} cannot name a sandbox: use letters, digits, '.', '_' and '-'"
            )
        directory = private_directory(home, "leases")
        while True:
            token = secrets.token_hex(8)
            path = directory / f"{token}.json"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            if lock(fd) and os.fstat(fd).st_nlink == 1:
                break
            os.close(fd)  # a reaper met the empty file and removed it
        lease = cls(path, fd)
        lease._append(
            token=token,
            label=label,
            pid=os.getpid(),
            started=start_time(os.getpid()),
            boot=_boot_id(),
            created_at=datetime.now(UTC).isoformat(),
        )
        sync(directory)
        return lease

    def add(self, kind: str, name: str, **details: Any) -> None:
        """Name a resource (or more about one) before it is made; on disk when this returns."""
        self._append(kind=kind, name=name, **details)

    def add_process(self, pid: int) -> None:
        """Name a running process, to be killed when the lease ends."""
        self.add("process", str(pid), started=start_time(pid), boot=_boot_id())

    def record(self) -> LeaseRecord:
        """What the file says now."""
        return read_lease(self.path, self._fd)

    def release(self) -> None:
        """Forget the lease: everything that it names has been removed."""
        self.path.unlink(missing_ok=True)
        close_held(self._fd)

    def _append(self, **line: Any) -> None:
        data = json.dumps(line).encode() + b"\n"
        size_before = os.fstat(self._fd).st_size
        if os.write(self._fd, data) != len(data):
            os.ftruncate(self._fd, size_before)
            raise SandboxError(f"the lease {self.path} cannot be written: the disk is full")
        os.fsync(self._fd)


def read_lease(path: Path, fd: int) -> LeaseRecord:
    """Read a lease file; a SandboxError if it is not one of ours, whole and sound."""
    content = os.pread(fd, os.fstat(fd).st_size, 0)
    lines = content.split(b"\n")[:-1]  # what follows the last newline was never finished
    if not lines:
        return LeaseRecord(path, "", [])
    resources: dict[tuple[str, str], dict[str, Any]] = {}
    try:
        owner, *rest = (json.loads(line) for line in lines)
        if owner["token"] != path.stem:
            raise ValueError("it names another token")
        label = str(owner["label"])
        for line in rest:
            resource = (str(line.pop("kind")), str(line.pop("name")))
            resources.setdefault(resource, {}).update(line)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SandboxError(
            f"the lease {path} is broken ({type(error).__name__}: {error}): nothing that it may "
            "name was removed; remove by hand what it names, then the file"
        ) from None
    named = [Resource(kind, name, details) for (kind, name), details in resources.items()]
    return LeaseRecord(path, label, named)


@contextlib.contextmanager
def survey(home: Path) -> Iterator[list[Path]]:
    """All lease files, while no one else surveys them: a probing lock is then never met."""
    directory = private_directory(home, "leases")
    fd = os.open(directory / ".survey", os.O_RDWR | os.O_CREAT, 0o600)
    hold(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield sorted(directory.glob("*.json"))
    finally:
        close_held(fd)


@contextlib.contextmanager
def dead(path: Path) -> Iterator[int | None]:
    """The locked descriptor of a lease whose owner is gone, or None. Only inside `survey`."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield None
        return
    hold(fd)
    try:
        yield fd if lock(fd) and os.fstat(fd).st_nlink > 0 else None
    finally:
        close_held(fd)


def is_alive(home: Path, label: str) -> bool:
    """Whether a process that lives holds a lease with this label."""
    with survey(home) as paths:
        for path in paths:
            with dead(path) as fd:
                if fd is None and path.exists() and _label(path) == label:
                    return True
    return False


def _label(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return read_lease(path, fd).label
    finally:
        os.close(fd)


@contextlib.contextmanager
def exclusive(
    home: Path,
    name: str,
    timeout_seconds: float,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold the lock `name`, so that only one holder runs at a time; the kernel drops it on SIGKILL.

    While another process (or thread) holds it, `on_wait` is called once with who that is, and a
    RecoveryError ends the wait after `timeout_seconds`.
    """
    path = private_directory(home, "locks") / name
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    hold(fd)
    try:
        deadline = time.monotonic() + timeout_seconds
        waited = False
        while not lock(fd):
            holder = os.pread(fd, 200, 0).decode(errors="replace") or "another process"
            if not waited and on_wait is not None:
                on_wait(holder)
            waited = True
            if time.monotonic() >= deadline:
                raise RecoveryError(
                    f"the lock {path} was held by {holder} for {timeout_seconds:.0f} s: wait for "
                    "it to end, or stop it"
                )
            time.sleep(0.05)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        close_held(fd)


def kill_process(resource: Resource) -> bool:
    """Kill a process if it is still the one that the lease named; returns whether it lived."""
    try:
        pid, started = int(resource.name), resource.details["started"]
        same_boot = resource.details["boot"] == _boot_id()
    except (KeyError, ValueError):
        raise SandboxError(
            f"a lease names the process {resource.name!r} without its start"
        ) from None
    if not same_boot:
        return False
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return start_time(pid) == started and _kill(pidfd, pid)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)


def kill_strays(token: str) -> list[int]:
    """Kill every process whose environment carries the lease's token; returns their ids.

    Only what may be read counts: as root all processes, else our own. Raises SandboxError if one
    does not end, or gets no environment to be told by.
    """
    killed: list[int] = []
    while True:
        found = [pid for pid in _pids() if _kill_if_stray(pid, token)]
        if not found:
            return killed
        killed += found


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; ProcessLookupError if it is gone."""
    return int(_status(pid)[19])


def _status(pid: int) -> list[bytes]:
    """The fields of /proc/<pid>/stat, from the state on; ProcessLookupError if it is gone."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    return content.rpartition(b")")[2].split()


def private_directory(home: Path, name: str) -> Path:
    """The directory `home`/`name`, made if absent; refused if it is a link or others may write."""
    home.mkdir(parents=True, exist_ok=True)
    directory = home.resolve() / name
    if directory.parent == Path("/"):
        raise SandboxError("the data home cannot be '/': give it a directory of its own")
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    fd = os.open(directory, os.O_PATH | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o170022 != 0o040000:
        raise SandboxError(
            f"refused {directory}: it must be a directory of our own that no one else may write to"
        )
    return directory


def _kill_if_stray(pid: int, token: str) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        environment = _environment(pid)
        return f"{ENVIRONMENT_NAME}={token}".encode() in environment and _kill(pidfd, pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)


def _environment(pid: int) -> list[bytes]:
    """The variables that a process was started with.

    While a program is being loaded, the process has none yet and could be anyone's: waited for.
    """
    deadline = time.monotonic() + _KILL_TIMEOUT_SECONDS
    while not (content := Path(f"/proc/{pid}/environ").read_bytes()) and not _has_none(pid):
        if time.monotonic() > deadline:
            raise SandboxError(
                f"process {pid} has not got its environment within {_KILL_TIMEOUT_SECONDS:.0f} s: "
                "whose it is cannot be told"
            )
        time.sleep(0.001)
    return content.split(b"\0")


def _has_none(pid: int) -> bool:
    """Whether a process will never have an environment: it ends, is the kernel's, or got an empty
    one (which has a place in memory; one that is not there yet has none)."""
    fields = _status(pid)
    state, flags, begins, ends = fields[0], int(fields[6]), int(fields[47]), int(fields[48])
    return state in (b"Z", b"X") or bool(flags & _WITHOUT_MEMORY) or begins == ends != 0


def _kill(pidfd: int, pid: int) -> bool:
    """Kill, and wait for the end; False if it had ended already."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return False
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    if not ended.poll(_KILL_TIMEOUT_SECONDS * 1000):
        raise SandboxError(f"process {pid} did not end within {_KILL_TIMEOUT_SECONDS:.0f} s")
    return True


def _pids() -> list[int]:
    names = (entry.name for entry in Path("/proc").iterdir())
    return [int(name) for name in names if name.isdigit() and int(name) != os.getpid()]


def lock(fd: int) -> bool:
    """Take the lock of an open file; False if another open file has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hold(fd: int) -> None:
    """Keep a descriptor with its lock from every forked child, until `close_held`."""
    _held_fds.add(fd)


def close_held(fd: int) -> None:
    if fd in _held_fds:
        _held_fds.discard(fd)
        os.close(fd)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
