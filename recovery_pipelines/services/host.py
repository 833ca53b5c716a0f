"""The outside of a machine: switches it on, on its volume, and off."""

import os
import select
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from recovery_pipelines.errors import ServiceError
from recovery_pipelines.namespaces import Namespaced, why_no_namespaces
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.services.memory import why_no_memory_group
from recovery_pipelines.services.page_cache import why_no_page_cache
from recovery_pipelines.services.power import is_attached, make_image
from recovery_pipelines.services.service import VOLUME_BYTES, Service
from recovery_pipelines.tools import Finished

VolumeKind = Literal["image", "page cache", "directory"]
"""The first two can lose their power; a directory loses nothing but with its disk."""
_OFF_TIMEOUT_SECONDS = 20.0
_LOOK_SECONDS = 0.005


class Machine(Namespaced):
    """A running machine. As a context manager it is switched off at the end."""

    failure = ServiceError

    def __init__(
        self,
        sandbox: Sandbox,
        name: str,
        services: Sequence[Service],
        logs: Path,
        *,
        binds: Mapping[str, Path] | None = None,
        read_only: Mapping[str, Path] | None = None,
        new_volume: bool = False,
        distrusted: bool = False,
        volume: VolumeKind | None = None,
    ) -> None:
        """Switch on the machine `name`, on its volume in the sandbox: a new one, or the one that
        an earlier machine of this name left behind.

        `logs` takes the services' output and the supervisor's events; it is not on the volume.
        Each of `binds` and `read_only` is seen inside as `ROOM/<name>`. A `distrusted` machine runs
        what others wrote: all but its volume, a folder of the sandbox, is read-only or hidden.
        The `volume` is of the best kind that can be made here, unless one is named.
        """
        tree = sandbox.tree(f"machine-{name}")
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = logs
        kind = volume or ("directory" if distrusted else _best_volume())
        self._image = tree.path / "volume.img" if kind == "image" else None
        if new_volume:
            tree.clear()
            if self._image:
                make_image(self._image, VOLUME_BYTES)
        if not self._image:
            (tree.path / "volume").mkdir(exist_ok=True)
        told = {
            "services": [asdict(service) for service in services],
            "ordinary_user": os.geteuid() != 0,
            "volume": kind,
            "path": str(self._image or tree.path / "volume"),
            "binds": {name: str(path) for name, path in (binds or {}).items()},
            "read_only": {name: str(path) for name, path in (read_only or {}).items()},
            "logs": str(logs),
            "distrusted": distrusted,
            "sockets": _sockets_of_the_host() if distrusted else [],
        }
        module = "recovery_pipelines.services.machine"
        super().__init__(sandbox, f"machine {name}", module, logs / f"machine-{name}.log", told)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        user: str = "",
        stdin: str = "",
        timeout_seconds: float = 120.0,
    ) -> Finished:
        """Run a program inside, to its end."""
        words = [str(word) for word in argv]
        answer = self._exchange(
            {
                "do": "run",
                "argv": words,
                "user": user,
                "stdin": stdin,
                "timeout_seconds": timeout_seconds,
            },
            timeout_seconds + 10,
        )
        return Finished(answer["returncode"], answer["stdout"].encode(), answer["stderr"].encode())

    @property
    def init_pid(self) -> int:
        """The machine's first process, by its number outside: what `nsenter` and `ip` take."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return int(children.read_text().split()[0])

    def end(self) -> None:
        """Switch it off: kill everything in it at once, and wait until nothing holds its volume."""
        inside = self._inside() if self._process.poll() is None else None
        super().end()
        if inside is not None:
            _await_end(inside)
        deadline = time.monotonic() + _OFF_TIMEOUT_SECONDS
        while self._image and is_attached(self._image):
            if time.monotonic() > deadline:
                raise ServiceError(f"a loop device still holds {self._image}")
            time.sleep(_LOOK_SECONDS)

    def refusal(self, why: str) -> ServiceError:
        return ServiceError(f"{self.name}: {why}")

    def _inside(self) -> int | None:
        try:
            return os.pidfd_open(self.init_pid)
        except (OSError, IndexError):
            return None


def _sockets_of_the_host() -> list[str]:
    """Those that are files: a network namespace does not keep anybody from them."""
    lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    paths = {line.split(maxsplit=7)[-1] for line in lines if len(line.split(maxsplit=7)) == 8}
    return sorted(path for path in paths if path.startswith("/"))


def can_loop() -> bool:
    """Whether a volume can be a loop-mounted image, and so lose its power."""
    return os.geteuid() == 0 and os.access("/dev/loop-control", os.W_OK)


def _best_volume() -> VolumeKind:
    if can_loop():
        return "image"
    return "directory" if why_no_page_cache() else "page cache"


def capabilities() -> dict[str, str]:
    """What this host lets a drill do: `yes`, or why not. Kept with each result."""
    return {
        "namespaces": why_no_namespaces() or "yes",
        "power cut of a loop device": "yes"
        if can_loop()
        else "no: needs root and /dev/loop-control",
        "power cut of a FUSE page cache": why_no_page_cache() or "yes",
        "memory cgroup": why_no_memory_group() or "yes",
    }


def _await_end(pidfd: int) -> None:
    """The first process of a pid namespace ends last: after it, nothing runs in there."""
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(_OFF_TIMEOUT_SECONDS * 1000):
            raise ServiceError(f"a machine did not end within {_OFF_TIMEOUT_SECONDS:.0f} s")
    finally:
        os.close(pidfd)
