"""The machine: a process with namespaces of its own that holds a volume and supervises services.

`host.Machine` starts it and speaks to it.
"""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from pwd import getpwnam
from typing import Any, TypeVar

from recovery_pipelines import confine
from recovery_pipelines.databases import postgres_contents
from recovery_pipelines.errors import RecoveryError, ServiceError
from recovery_pipelines.namespaces import answer, as_user, first_words, mount, refuse, requests
from recovery_pipelines.services import ledger, memory
from recovery_pipelines.services.page_cache import CachedVolume, mount_page_cache
from recovery_pipelines.services.power import LoopVolume, mount_image
from recovery_pipelines.services.service import ROOM, VOLUME, VOLUME_BYTES, Health, Service
from recovery_pipelines.services.supervisor import Supervisor
from recovery_pipelines.tools import find_tool, run_tool

_T = TypeVar("_T")
_HOST = "127.0.0.1"
_GET_TIMEOUT_SECONDS = 5.0
_WORK_TIMEOUT_SECONDS = 100.0
_FULL_BELOW_BYTES = 1_000_000
_RESERVE_BYTES = 24_000_000
_WATCH_SECONDS = 0.25
_SENTINELS = 8
_SENTINEL_BYTES = 4096


class _Machine:
    def __init__(self, told: dict[str, Any]) -> None:
        self._ordinary_user = bool(told["ordinary_user"])
        self._logs = Path(told["logs"])
        services = [
            Service(**service | {"health": Health(**service["health"])})
            for service in told["services"]
        ]
        self._volume = _build_room(told)
        self._spawned: dict[str, subprocess.Popen[bytes]] = {}
        self._ballast = VOLUME / ".ballast"
        self._reserve = VOLUME / ".reserve"
        self.supervisor = Supervisor(services, self._as_user, self._logs, self._must_wait)

    def _as_user(self, user: str, command: Sequence[str]) -> list[str]:
        if not user:
            return list(command)
        return as_user(user, command, ordinary_user=self._ordinary_user)

    def _unit(self, name: str) -> Service:
        return self.supervisor.units[name].service

    # --- a full disk --------------------------------------------------------------------

    def _must_wait(self) -> str:
        return "the disk is full" if _free_bytes() < _FULL_BELOW_BYTES else ""

    async def watch_disk(self) -> None:
        """Notice a full volume and free the reserve: a restart would not help."""
        full = False
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if self._must_wait() and not full:
                full = True
                free = _free_bytes()
                self.supervisor.event("volume", "noticed", f"disk full: {free:,} bytes free")
                if self._reserve.exists():
                    self._reserve.unlink()
                    self.supervisor.event("volume", "remedied", "the reserve was freed")
            elif full and not self._must_wait():
                full = False
                self.supervisor.event("volume", "healthy", f"{_free_bytes():,} bytes free")

    # --- what can be asked for ----------------------------------------------------------

    async def do_start(self) -> dict[str, Any]:
        for unit in self.supervisor.units.values():
            self._prepare(unit.service)
        _fill(self._reserve, _RESERVE_BYTES)
        began = time.monotonic()
        await self.supervisor.start()
        states = self.supervisor.status()
        late = [name for name, state in states.items() if not state["healthy"]]
        if late:
            raise ServiceError(f"do not start: {', '.join(late)}")
        return {"began": began, "ended": time.monotonic()}

    async def do_stop(self) -> dict[str, Any]:
        await self.supervisor.stop()
        return {}

    async def do_status(self) -> dict[str, Any]:
        return {"services": self.supervisor.status(), "power_cut": self._power_cut()}

    async def do_sync(self) -> dict[str, Any]:
        """Put everything on the volume on its disk: what set-up wrote must survive a cut."""
        if self._volume is not None:
            self._volume.sync()
        return {}

    async def do_run(
        self, argv: list[str], user: str, stdin: str, timeout_seconds: float
    ) -> dict[str, Any]:
        """Run a program to its end."""
        process = await asyncio.create_subprocess_exec(
            *self._as_user(user, argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOM,
            env=os.environ | {"LC_ALL": "C.UTF-8", "TZ": "UTC"},
        )
        try:
            stdout, stderr = await asyncio.wait_for(
                process.communicate(stdin.encode()), timeout_seconds
            )
        except TimeoutError:
            process.kill()
            raise ServiceError(f"{argv[0]} was stopped after {timeout_seconds:.0f} s") from None
        return {
            "returncode": process.returncode,
            "stdout": stdout.decode(errors="replace"),
            "stderr": stderr.decode(errors="replace"),
        }

    async def do_rows(self, kind: str, port: int) -> dict[str, Any]:
        """Every numbered row of a store, see `ledger.read`."""
        return {"rows": await _work(lambda: list(ledger.read(kind, _HOST, port)))}

    async def do_contents(self, what: str, port: int, name: str) -> dict[str, Any]:
        """Look at a database, or mark it, see `postgres_contents.carry_out`."""
        return {"said": await _work(lambda: postgres_contents.carry_out(what, port, name))}

    async def do_get(self, port: int, path: str) -> dict[str, Any]:
        """Ask a server of HTTP."""

        def get() -> dict[str, Any]:
            with closing(HTTPConnection(_HOST, port, timeout=_GET_TIMEOUT_SECONDS)) as connection:
                connection.request("GET", path)
                reply = connection.getresponse()
                return {"status": reply.status, "text": reply.read(200).decode(errors="replace")}

        return await _work(get)

    async def do_spawn(self, name: str, argv: list[str]) -> dict[str, Any]:
        """Start a program beside the services, such as a client."""
        with (self._logs / f"{name}.log").open("ab") as output:
            self._spawned[name] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOM
            )
        return {"pid": self._spawned[name].pid}

    async def do_end(self, name: str) -> dict[str, Any]:
        """End a program started by `spawn`; says how it had ended, if it had."""
        process = self._spawned.pop(name)
        ended = process.poll()
        process.terminate()
        await asyncio.to_thread(process.wait)
        return {"ended_before": ended}

    async def do_signal(self, name: str, number: int) -> dict[str, Any]:
        """Signal every process of a service at once (a killed one: the main process)."""
        at = time.monotonic()
        family = self.supervisor.family(name)
        signalled = 0
        for member in family[:1] if number == signal.SIGKILL else family:
            with suppress(ProcessLookupError):  # it may have ended meanwhile
                os.kill(member.pid, number)
                signalled += 1
        if family and not signalled:
            raise ServiceError(f"{name} does not run any more")
        return {"at": at, "processes": signalled}

    async def do_limit(self, name: str, resource: str, value: int) -> dict[str, Any]:
        """Lower a resource limit of a service's main process, as its own user."""
        family = self.supervisor.family(name)
        if not family:
            raise ServiceError(f"{name} does not run")
        argv = [find_tool("prlimit"), "--pid", str(family[0].pid), f"--{resource}={value}:{value}"]
        at = time.monotonic()
        done = run_tool(self._as_user(self._unit(name).user, argv))
        if done.returncode:
            raise ServiceError(f"prlimit of {name}: {done.complaint}")
        return {"at": at, "memory_bytes": family[0].memory_info().vms}

    async def do_starve(self, name: str, group: str) -> dict[str, Any]:
        """Move a service into a memory cgroup."""
        at = time.monotonic()
        moved = memory.move(Path(group), (each.pid for each in self.supervisor.family(name)))
        if not moved:
            raise ServiceError(f"{name} does not run")
        return {"at": at, "processes": moved}

    async def do_fill(self) -> dict[str, Any]:
        """Fill the volume but for what the file system itself may need to do so."""
        if self._volume is None:
            raise ServiceError(
                "a disk is filled only on a volume of its own: a loop device (root) or FUSE"
            )
        at = time.monotonic()
        _fill(self._ballast, _free_bytes() - _FULL_BELOW_BYTES // 2)
        return {"at": at, "free_bytes": _free_bytes()}

    async def do_empty(self) -> dict[str, Any]:
        """Take the ballast away, and put the reserve back."""
        self._ballast.unlink(missing_ok=True)
        if not self._reserve.exists():
            _fill(self._reserve, _RESERVE_BYTES)
        return {"free_bytes": _free_bytes()}

    async def do_make_room(self, name: str) -> dict[str, Any]:
        """An empty directory for a service whose data will be restored."""
        service = self._unit(name)
        self._make_room(service)
        return {"entries": sum(1 for _ in service.data.iterdir())}

    async def do_mark(self) -> dict[str, Any]:
        """Files that tell a power cut from a mere crash: the old content of all is on disk."""
        folder = VOLUME / ".power"
        folder.mkdir(exist_ok=True)
        for number in range(_SENTINELS):
            for kind in ("synced", "unsynced"):
                _overwrite(folder / f"{kind}-{number}", "old", synced=True)
        await self.do_sync()
        return {}

    async def do_cut(self) -> dict[str, Any]:
        """Cut the power, if the volume can lose it; the caller then kills this machine."""
        token = secrets.token_hex(16)
        folder = VOLUME / ".power"
        for number in range(_SENTINELS):
            _overwrite(folder / f"unsynced-{number}", token, synced=False)
            _overwrite(folder / f"synced-{number}", token, synced=True)
        if self._volume is None:
            now = time.monotonic()
            return {"power_cut": False, "token": token, "before": now, "after": now}
        before, after = self._volume.cut()
        return {"power_cut": True, "token": token, "before": before, "after": after}

    async def do_sentinels(self, token: str) -> dict[str, Any]:
        """How many of the files that were written before the cut hold what was written last."""
        folder = VOLUME / ".power"
        kept = {
            kind: sum(
                (folder / f"{kind}-{number}").read_text().startswith(token)
                for number in range(_SENTINELS)
            )
            for kind in ("synced", "unsynced")
        }
        return {"of": _SENTINELS, **kept}

    def _power_cut(self) -> str:
        """Empty if the volume can lose its power, else why not."""
        if self._volume is not None:
            return ""
        return "not a power cut: losing unsynced data needs a loop device (root) or FUSE"

    def _make_room(self, service: Service) -> None:
        if not service.data.exists():
            service.data.mkdir(mode=0o700)
            if service.user and not self._ordinary_user:
                shutil.chown(service.data, service.user, getpwnam(service.user).pw_gid)

    def _prepare(self, service: Service) -> None:
        self._make_room(service)
        if service.prepare and not any(service.data.iterdir()):
            done = run_tool(self._as_user(service.user, service.prepare), timeout_seconds=120)
            if done.returncode:
                raise ServiceError(f"{service.prepare[0]} failed: {done.complaint}")
        if service.kind == "postgres":
            access = service.data / "pg_hba.conf"
            lines = "host all all all trust\nhost replication all all trust\n"
            access.write_text(lines)


def _build_room(told: dict[str, Any]) -> LoopVolume | CachedVolume | None:
    """Everything that services see is below ROOM, on a private tmpfs; so is /dev/shm."""
    for where in (ROOM, Path("/dev/shm")):
        mount("-t", "tmpfs", "-o", "mode=755" if where == ROOM else "mode=1777", "tmpfs", where)
    VOLUME.mkdir()
    for name, path in (told["binds"] | told["read_only"]).items():
        (ROOM / name).mkdir()
        mount("--bind", path, ROOM / name)
        if name in told["read_only"]:
            mount("-o", ",".join(("remount", "bind", "ro", *_kept_options(path))), ROOM / name)
    run_tool([find_tool("ip", "iproute2"), "link", "set", "lo", "up"])
    volume = _mount_volume(told["volume"], Path(told["path"]))
    VOLUME.chmod(0o755)
    if told["distrusted"]:
        _shut_out_the_world(told)
    return volume


def _mount_volume(kind: str, path: Path) -> LoopVolume | CachedVolume | None:
    """`kind` is one of `host.VolumeKind`."""
    if kind == "image":
        return mount_image(path, VOLUME)
    if kind == "page cache":
        memory = ROOM / "page-cache"
        memory.mkdir(mode=0o700)
        return mount_page_cache(path, memory, VOLUME, VOLUME_BYTES)
    mount("--bind", path, VOLUME)
    return None


def _shut_out_the_world(told: dict[str, Any]) -> None:
    """What runs in here may be what a backup says: it can write into the volume and ROOM alone,
    and reach none of the host's servers by their sockets."""
    sockets = [path for path in told["sockets"] if not path.startswith("/run/")]
    for path in filter(os.path.exists, sockets):
        confine.hide(path)
    mount("-t", "tmpfs", "tmpfs", "/run")
    mount("--bind", told["logs"], told["logs"])
    confine.read_only_but([str(ROOM), str(VOLUME), "/dev/shm", "/run", told["logs"]])


def _kept_options(path: str) -> list[str]:
    """What an ordinary user must say again when remounting."""
    flags = os.statvfs(path).f_flag
    known = {
        "nosuid": os.ST_NOSUID,
        "nodev": os.ST_NODEV,
        "noexec": os.ST_NOEXEC,
        "noatime": os.ST_NOATIME,
        "nodiratime": os.ST_NODIRATIME,
        "relatime": os.ST_RELATIME,
    }
    return [option for option, flag in known.items() if flags & flag]


def _free_bytes() -> int:
    found = os.statvfs(VOLUME)
    return found.f_bavail * found.f_frsize


def _fill(path: Path, size_bytes: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(fd, 0, max(size_bytes, 1))
    finally:
        os.close(fd)


def _overwrite(path: Path, text: str, *, synced: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(fd, text.ljust(_SENTINEL_BYTES).encode())
        if synced:
            os.fsync(fd)
    finally:
        os.close(fd)


async def _work(what: Callable[[], _T]) -> _T:
    """Ask a service while the supervisor goes on; ServiceError for whatever goes wrong."""
    try:
        return await asyncio.wait_for(asyncio.to_thread(what), _WORK_TIMEOUT_SECONDS)
    except TimeoutError:
        raise ServiceError(f"no answer within {_WORK_TIMEOUT_SECONDS:.0f} s") from None
    except Exception as error:  # whatever the service's client raises
        raise ServiceError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


async def _serve() -> None:
    machine = _Machine(first_words())
    asked = requests()
    watching = asyncio.create_task(machine.watch_disk())
    answer({"ready": os.getpid()})
    while True:
        request = await asyncio.to_thread(asked.get)
        try:
            done = await getattr(machine, f"do_{request.pop('do')}")(**request)
        except (RecoveryError, OSError) as error:
            done = {"error": f"{type(error).__name__}: {error}"}
        if watching.done():
            watching.result()
        answer(done)


if __name__ == "__main__":
    try:
        asyncio.run(_serve())
    except RecoveryError as error:
        refuse(error)
