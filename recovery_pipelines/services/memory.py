"""A memory cgroup of a service's own, in which the kernel's OOM killer ends what needs more.

Versions 1 and 2 of cgroups: files are called differently, and version 2 lets a group be made only
where its parent hands the memory controller down.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from recovery_pipelines.errors import MissingCapability
from recovery_pipelines.sandbox import CGROUPS, Sandbox, cgroup_name

_LIMITS = ("memory.limit_in_bytes", "memory.max", "memory.memsw.limit_in_bytes", "memory.swap.max")


def why_no_memory_group() -> str:
    """Empty where a memory cgroup can be made."""
    try:
        place()
    except MissingCapability as error:
        return str(error)
    return ""


def make_group(sandbox: Sandbox, name: str) -> Path:
    """A group in which no page more is allowed, removed with the sandbox.

    Raises MissingCapability where none can be made.
    """
    group = place() / cgroup_name(sandbox.token, name)
    sandbox.lease.add("cgroup", str(group))
    try:
        group.mkdir()
        for limit in (group / name for name in _LIMITS):
            if limit.exists():
                limit.write_text("0")  # what a service had before is not counted
    except OSError as error:
        raise MissingCapability(f"no memory cgroup can be made: {error}") from error
    return group


def move(group: Path, pids: Iterable[int]) -> int:
    """Move processes into a group: what they allocate from now on counts.

    Returns how many. Some may end meanwhile, the more so as the first is killed for its memory.
    """
    moved = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(pid))
            moved += 1
    return moved


def oom_kills(group: Path) -> int:
    """How many processes of a group the kernel has killed for their memory."""
    counters = group / "memory.events", group / "memory.oom_control"
    text = next(path for path in counters if path.exists()).read_text()
    words = dict(line.split() for line in text.splitlines())
    return int(words["oom_kill"])


def place(root: Path = CGROUPS, own: str | None = None) -> Path:
    """Where a group can be made (`own`: /proc/self/cgroup). MissingCapability if nowhere."""
    own = Path("/proc/self/cgroup").read_text() if own is None else own
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        below = root / "memory" if "memory" in controllers.split(",") else root
        here = below / path.strip("/")
        for folder in (here, *here.parents):
            if folder.is_relative_to(below) and _can_hold_a_group(folder, bool(controllers)):
                return folder
    raise MissingCapability("no memory cgroup can be made: none of ours may be written to")


def _can_hold_a_group(folder: Path, first_version: bool) -> bool:
    try:
        with (folder / "cgroup.procs").open("a"):
            pass
        handed_down = folder / "cgroup.subtree_control"
        return (
            (folder / "memory.limit_in_bytes").exists()
            if first_version
            else "memory" in handed_down.read_text().split()
        )
    except OSError:
        return False
