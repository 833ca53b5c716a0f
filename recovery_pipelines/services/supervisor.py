"""The supervisor: starts services in order, probes them, notices death and hangs, restarts them.

It runs inside a machine. Every event is one line of JSON with a monotonic time, in a file that the
machine's failure does not touch.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from recovery_pipelines.services.probes import probe
from recovery_pipelines.services.service import Service, in_order

PROBE_INTERVAL_SECONDS = 0.25
PROBE_TIMEOUT_SECONDS = 1.0
FAILURES_TO_DECLARE = 2
"""A hang is declared after the interval and this many timeouts."""
STARTING_INTERVAL_SECONDS = 0.05
START_TIMEOUT_SECONDS = 60.0
STARTS_TO_GIVE_UP = 4
FIRST_DELAY_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 5.0
STEADY_AFTER_SECONDS = 5.0
"""A service that was healthy for so long starts again with the first delay."""
STOP_TIMEOUT_SECONDS = 10.0

_NO_CLUE = ""


@dataclass
class Unit:
    """A service under supervision, and what is known of it."""

    service: Service
    process: asyncio.subprocess.Process | None = None
    healthy: asyncio.Event = field(default_factory=asyncio.Event)
    keeper: "asyncio.Task[None] | None" = None
    family: list[psutil.Process] = field(default_factory=list)
    """Its processes as last seen: what it leaves when it dies is ended with it."""
    restarts: int = 0
    stopping: bool = False


class Supervisor:
    """Keeps services running from `start` to `stop`."""

    def __init__(
        self,
        services: Sequence[Service],
        wrap: Callable[[str, Sequence[str]], list[str]],
        logs: Path,
        must_wait: Callable[[], str] = lambda: _NO_CLUE,
        host: str = "127.0.0.1",
    ) -> None:
        """`wrap` makes a command run as a user; `must_wait` says why a restart cannot help now."""
        self.units = {service.name: Unit(service) for service in in_order(services)}
        self._wrap = wrap
        self._logs = logs
        self._must_wait = must_wait
        self._host = host

    # --- what the machine asks for ------------------------------------------------------

    async def start(self) -> None:
        """Start all; returns once every service has answered a probe, or when there is no hope
        that one will."""
        for unit in self.units.values():
            unit.restarts = 0
            unit.keeper = unit.keeper or asyncio.create_task(self._keep(unit))
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not all(unit.healthy.is_set() for unit in self.units.values()):
            hopeless = any(unit.restarts >= STARTS_TO_GIVE_UP for unit in self.units.values())
            if hopeless or time.monotonic() > deadline:
                return
            await asyncio.sleep(STARTING_INTERVAL_SECONDS)

    async def stop(self) -> None:
        """Stop all, dependants first, each with SIGTERM and, if it does not end, SIGKILL."""
        for unit in reversed(self.units.values()):
            unit.stopping = True
            if unit.keeper:
                unit.keeper.cancel()
                await asyncio.wait([unit.keeper])
                unit.keeper = None
            await self._end(unit)
            unit.healthy.clear()
            unit.stopping = False
            self.event(unit.service.name, "stopped")

    def status(self) -> dict[str, dict[str, object]]:
        """By service: `healthy`, `pid`, `restarts`."""
        return {
            name: {
                "healthy": unit.healthy.is_set(),
                "pid": unit.process.pid if unit.process else None,
                "restarts": unit.restarts,
            }
            for name, unit in self.units.items()
        }

    def family(self, name: str) -> list[psutil.Process]:
        """The processes of a service, its main one first."""
        process = self.units[name].process
        if process is None or process.returncode is not None:
            return []
        try:
            main = psutil.Process(process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def event(self, name: str, what: str, detail: str = "") -> None:
        """Write one event down."""
        line = {"at": time.monotonic(), "service": name, "event": what, "detail": detail}
        with (self._logs / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    # --- one service --------------------------------------------------------------------

    async def _keep(self, unit: Unit) -> None:
        service = unit.service
        for name in service.depends_on:
            await self.units[name].healthy.wait()
        delay = FIRST_DELAY_SECONDS
        while True:
            await self._begin(unit)
            steady_for, why = await self._until_failed(unit)
            unit.healthy.clear()
            self.event(service.name, "failed", why)
            await self._end(unit)
            delay = (
                FIRST_DELAY_SECONDS
                if steady_for >= STEADY_AFTER_SECONDS
                else min(delay * 2, LONGEST_DELAY_SECONDS)
            )
            await asyncio.sleep(delay)
            unit.restarts += 1

    async def _begin(self, unit: Unit) -> None:
        service = unit.service
        self.event(service.name, "starting")
        with (self._logs / f"{service.name}.log").open("ab") as output:
            unit.process = await asyncio.create_subprocess_exec(
                *self._wrap(service.user, service.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=service.data,
                env=_environment(service.environment),
                start_new_session=True,
            )

    async def _until_failed(self, unit: Unit) -> tuple[float, str]:
        """Probe until the service has failed; returns for how long it was healthy, and why not
        any more."""
        assert unit.process is not None
        began = time.monotonic()
        healthy_since: float | None = None
        failures = 0
        noticed = False
        ended = asyncio.create_task(unit.process.wait())
        try:
            while True:
                why = await self._ask(unit.service, ended)
                now = time.monotonic()
                if ended.done():
                    why = f"ended with {_exit(ended.result())}"
                    self.event(unit.service.name, "noticed", why)
                    return now - (healthy_since or now), why
                unit.family = self.family(unit.service.name)
                if not why:
                    failures = 0
                    if healthy_since is None or noticed:
                        self.event(unit.service.name, "healthy")
                    healthy_since = healthy_since or now
                    noticed = False
                    unit.healthy.set()
                elif healthy_since is None:
                    if now - began > START_TIMEOUT_SECONDS:
                        return 0.0, f"did not get healthy: {why}"
                else:
                    failures += 1
                    if not noticed:
                        self.event(unit.service.name, "noticed", why)
                        noticed = True
                    hopeless = self._must_wait()
                    if failures >= FAILURES_TO_DECLARE and not hopeless:
                        return now - healthy_since, why
                pause = STARTING_INTERVAL_SECONDS
                if healthy_since is not None:
                    pause = PROBE_INTERVAL_SECONDS
                await asyncio.wait([ended], timeout=pause)
        finally:
            ended.cancel()

    async def _ask(self, service: Service, ended: "asyncio.Task[int]") -> str:
        """One probe: empty if it was answered, else why not. Returns early if the process ends."""
        asked = asyncio.create_task(probe(service.health, self._host, service.port))
        await asyncio.wait(
            [asked, ended], timeout=PROBE_TIMEOUT_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if not asked.done():
            asked.cancel()
            await asyncio.wait([asked], timeout=PROBE_TIMEOUT_SECONDS)
            return f"no answer within {PROBE_TIMEOUT_SECONDS:.0f} s"
        error = asked.exception()
        return f"{type(error).__name__}: {error}" if error else ""

    async def _end(self, unit: Unit) -> None:
        """Make sure that nothing of a service runs any more."""
        process = unit.process
        if process is None:
            return
        family = self.family(unit.service.name) or unit.family
        if unit.stopping and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT if _is_postgres(unit) else signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_SECONDS)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        await process.wait()
        while any(_lives(member) for member in family):
            await asyncio.sleep(0.01)
        unit.process, unit.family = None, []


def _lives(member: psutil.Process) -> bool:
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_postgres(unit: Unit) -> bool:
    return unit.service.kind == "postgres"  # SIGTERM would wait for its clients to leave


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", **extra}


def _exit(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
