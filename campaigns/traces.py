"""What a process and all that it started hold on this machine, and what of it is still there.

Everything is found from outside and belongs to the process by what it held while it lived, or by
the lease that it carries: nothing is taken for its own because it looks unused.
"""

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from recovery_pipelines.sandbox.lease import ENVIRONMENT_NAME, start_time

_KINDS = ("net", "mnt", "pid", "ipc", "user")
_CGROUPS = Path("/sys/fs/cgroup")
_SHARED = Path("/dev/shm")
_END_TIMEOUT_SECONDS = 10.0
_LOOK_SECONDS = 0.05


def _now() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


@dataclass(frozen=True)
class Traces:
    """What a process held, with its descendants, at one moment."""

    session: int
    processes: frozenset[psutil.Process]
    namespaces: frozenset[str]
    """Such as `net:[4026532001]`: those that we do not share."""
    cgroups: frozenset[str]
    """Those that we are not in."""
    shared: frozenset[Path]
    """Files in the machine's /dev/shm."""
    until: int = field(default_factory=_now)
    """When that was, in clock ticks since boot."""

    @property
    def count(self) -> int:
        """How many things it held, itself aside."""
        others = [process for process in self.processes if process.pid != self.session]
        return len(others) + len(self.namespaces) + len(self.cgroups) + len(self.shared)


def traces_of(process_id: int) -> Traces:
    """What a living process holds now."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(process_id)
        family = [process, *process.children(recursive=True)]
    ours = _namespaces_of(os.getpid())
    held = {name for member in family for name in _namespaces_of(member.pid)}
    cgroups = {line for member in family for line in _cgroups_of(member.pid)}
    return Traces(
        session=process_id,
        processes=frozenset(family),
        namespaces=frozenset(held - ours),
        cgroups=frozenset(cgroups - _cgroups_of(os.getpid())),
        shared=frozenset(_shared_by(family)),
    )


def remaining(traces: Traces, home: Path, tokens: Collection[str]) -> list[str]:
    """What is left: processes, namespaces, mounts, loop devices, shared memory, control groups.

    `home` is the data home, `tokens` are the leases that the process held.
    """
    processes = living(traces, tokens)
    return [
        *(f"process {process.pid} {_name(process)}" for process in processes),
        *(f"namespace {name}" for name in sorted(_held(traces))),
        *(f"mount {line}" for line in _mounts(home, traces.namespaces)),
        *(f"loop {name}" for name in _loops(home)),
        *(f"shared memory {path}" for path in sorted(traces.shared) if path.exists()),
        *(f"control group {path}" for path in _cgroup_folders(traces.cgroups, tokens)),
    ]


def await_end(traces: Traces, home: Path, tokens: Collection[str]) -> tuple[float, list[str]]:
    """Seconds until nothing of it runs or is held, and what still does after a patient while.

    Parameters as for `remaining`.
    """
    began = time.monotonic()
    while still_there := remaining(traces, home, tokens):
        if time.monotonic() - began > _END_TIMEOUT_SECONDS:
            break
        time.sleep(_LOOK_SECONDS)
    return time.monotonic() - began, still_there


def living(traces: Traces, tokens: Collection[str]) -> list[psutil.Process]:
    """What lives of the process's family or session, or carries one of these leases."""
    return [process for process in psutil.process_iter() if _belongs(process, traces, tokens)]


def _belongs(process: psutil.Process, traces: Traces, tokens: Collection[str]) -> bool:
    try:
        if _has_ended(process):
            return False
        if process in traces.processes or os.getsid(process.pid) == traces.session:
            return True
        return process.environ().get(ENVIRONMENT_NAME) in tokens
    except (psutil.Error, OSError):
        return False


def _has_ended(process: psutil.Process) -> bool:
    """Whether only its exit status is left, for the machine's first process to collect."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:100]
    except psutil.Error:
        return "that has just ended"


def _namespaces_of(process_id: int) -> set[str]:
    """Of a process: those that it is in, its threads' networks, and those that it holds open."""
    folder = Path(f"/proc/{process_id}")
    links = [folder / "ns" / kind for kind in _KINDS]
    with contextlib.suppress(OSError):
        links += folder.glob("task/*/ns/net")
        links += folder.glob("fd/*")
    return {name for link in links if (name := _target(link)).split(":")[0] in _KINDS}


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _held(traces: Traces) -> set[str]:
    """Those of its namespaces that any process on the machine holds.

    The kernel gives the numbers of namespaces that are gone to new ones: a process that started
    later has no part in the old one, and if it belongs to the drill, it is found as a process.
    """
    if not traces.namespaces:
        return set()
    older = [process.pid for process in psutil.process_iter() if _is_of_then(process, traces)]
    return {name for each in older for name in _namespaces_of(each) if name in traces.namespaces}


def _is_of_then(process: psutil.Process, traces: Traces) -> bool:
    try:
        return not _has_ended(process) and start_time(process.pid) <= traces.until
    except ProcessLookupError:
        return False


def _mounts(home: Path, namespaces: Collection[str]) -> Iterator[str]:
    wanted = (str(home.resolve()), *namespaces)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if any(name in line for name in wanted):
            yield line


def _loops(home: Path) -> Iterator[str]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it is being detached
            if backing.read_text().startswith(str(home.resolve())):
                yield backing.parent.parent.name


def _shared_by(family: Collection[psutil.Process]) -> set[Path]:
    """The files in /dev/shm that these processes have mapped: they may have a /dev/shm of their
    own with the same names, so device and inode count."""
    maps = ""
    for member in family:
        with contextlib.suppress(OSError):
            maps += Path(f"/proc/{member.pid}/maps").read_text()
    found = set()
    for path in _SHARED.iterdir():
        with contextlib.suppress(OSError):
            status = path.stat()
            device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
            if f" {device} {status.st_ino} " in maps:
                found.add(path)
    return found


def _cgroups_of(process_id: int) -> set[str]:
    """Lines such as `4:memory:/drill`."""
    try:
        return set(Path(f"/proc/{process_id}/cgroup").read_text().splitlines())
    except OSError:
        return set()


def _cgroup_folders(lines: Collection[str], tokens: Collection[str]) -> list[str]:
    held = {line.split(":", 2)[2].lstrip("/") for line in lines} - {""}
    return sorted(
        str(folder)
        for folder, _, _ in ((Path(at), names, files) for at, names, files in os.walk(_CGROUPS))
        if any(str(folder).endswith("/" + name) for name in held)
        or any(token in folder.name for token in tokens)
    )
