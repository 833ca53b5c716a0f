"""The system under a drill: a machine with the target's services, and clients that write to it."""

import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.errors import ServiceError
from recovery_pipelines.services import ledger
from recovery_pipelines.services.host import Machine
from recovery_pipelines.services.service import Service
from recovery_pipelines.services.stack import resolve
from recovery_pipelines.tools import postgres_tool

STORES = ("postgres", "redis")
_LOOK_SECONDS = 0.02
_NO_ANSWER_SECONDS = 30.0
_NUMBERS_PER_ROUND = 10_000_000
"""Each round of clients numbers its rows from a multiple of this."""
HOST = "127.0.0.1"


def client_name(service: str) -> str:
    return f"client-{service}"


@dataclass
class Client:
    """One client: what it asks, and the log of what it was answered."""

    service: Service
    kind: str
    """postgres, redis, or http."""
    log: ledger.Log

    @property
    def name(self) -> str:
        return client_name(self.service.name)

    def answers(self) -> pd.DataFrame:
        """One row per finished request: `number`, `began`, `ended` (monotonic seconds), `error`."""
        return pd.DataFrame(self.log.rows(), columns=list(ledger.COLUMNS))

    def acknowledged(self) -> dict[int, float]:
        """When each acknowledged request was answered, by its number."""
        return {number: ended for number, _, ended, error in self.log.rows() if not error}


@dataclass
class System:
    """The services of a drill's target in a machine, and their clients."""

    run: DrillRun
    services: list[Service]
    machine: Machine
    logs: Path
    clients: list[Client]
    rounds: int = 0
    cut: dict[str, object] = field(default_factory=dict)
    """What the machine said when its power was cut; empty before."""
    crashed: list[str] = field(default_factory=list)
    """The services that were made to fail."""
    spared: list[str] = field(default_factory=list)
    """Critical ones to which the fault could not be done."""
    starved: dict[str, Path] = field(default_factory=dict)
    """By service whose memory was taken away: the cgroup in which it is counted."""
    observed_from: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        run: DrillRun,
        services: list[Service] | None = None,
        binds: Mapping[str, Path] | None = None,
    ) -> "System":
        """Switch a machine on and start all services on a new volume; those of the plan, unless
        others are given. `binds` are seen inside, see `Machine`."""
        services = services or resolve(run.spec.stack.services)
        logs = run.sandbox.tree("logs").path
        with run.working("machine switched on"):
            machine = Machine(run.sandbox, "main", services, logs, binds=binds, new_volume=True)
        clients = [
            Client(service, kind, ledger.Log(logs / f"{service.name}.answers"))
            for service in services
            if (kind := _client_kind(service))
        ]
        system = cls(run, services, machine, logs, clients)
        run.cleanup.callback(lambda: system.machine.end())
        with run.working("services started") as working:
            machine.ask("start")
            working(", ".join(service.name for service in services), 1.0)
        machine.ask("mark")
        machine.ask("sync")
        return system

    def switch_on_again(self) -> None:
        """A machine on the volume that the one before left behind."""
        self.machine = Machine(self.run.sandbox, "main", self.services, self.logs)

    # --- clients ------------------------------------------------------------------------

    def start_clients(self) -> float:
        """Start one client for each service that can have one; returns when (monotonic)."""
        self.rounds += 1
        first = self.rounds * _NUMBERS_PER_ROUND
        for client in self.clients:
            command = [client.kind, HOST, str(client.service.port)]
            options = ["--log", str(client.log.path), "--first", str(first)]
            if client.service.health.kind == "http" and client.service.kind == "command":
                options += ["--path", client.service.health.detail]
            argv = [sys.executable, "-m", "recovery_pipelines.services.ledger", *command, *options]
            self.machine.ask("spawn", name=client.name, argv=argv)
        return time.monotonic()

    def stop_clients(self) -> None:
        for client in self.clients:
            self.machine.ask("end", name=client.name)

    def await_answers(self, count: int, since: float) -> None:
        """Wait until every client was answered `count` times since then.

        Raises ServiceError if one gets no further answer: a slow machine is waited for.
        """
        for client in self.clients:
            seen, last = 0, time.monotonic()
            while seen < count:
                answered = sum(at >= since for at in client.acknowledged().values())
                if answered > seen:
                    seen, last = answered, time.monotonic()
                elif time.monotonic() - last > _NO_ANSWER_SECONDS:
                    raise ServiceError(
                        f"{client.name} was answered {seen} times, then not for "
                        f"{_NO_ANSWER_SECONDS:.0f} s; {count} answers were awaited"
                    )
                self.run.remaining_seconds()
                time.sleep(_LOOK_SECONDS * 5)

    def response_seconds(self, client: Client, since: float, until: float) -> list[float]:
        """How long each acknowledged request of that time took."""
        answers = client.answers()
        within = answers[
            (answers["began"] >= since) & (answers["ended"] <= until) & (answers["error"] == "")
        ]
        return [float(seconds) for seconds in within["ended"] - within["began"]]

    # --- looking at the stores ----------------------------------------------------------

    @property
    def stores(self) -> list[Client]:
        """The clients whose writes can be read back."""
        return [client for client in self.clients if client.kind in STORES]

    def rows(self, client: Client) -> dict[int, str]:
        """Every numbered row that the store holds. Raises ServiceError if it cannot be read."""
        told = self.machine.ask("rows", kind=client.kind, port=client.service.port)
        return dict(told["rows"])

    def events(self) -> pd.DataFrame:
        """What the supervisor wrote down: `at` (monotonic), `service`, `event`, `detail`."""
        path = self.logs / "events.jsonl"
        return pd.read_json(path, lines=True, convert_dates=False, dtype={"detail": str})

    def events_since(self, began: float) -> pd.DataFrame:
        """The same, later than this: `seconds` since then, `service`, `event`, `detail`."""
        events = self.events()
        events["seconds"] = events["at"] - began
        return events[events["seconds"] >= 0][["seconds", "service", "event", "detail"]]

    def sql(self, service: Service, statement: str) -> str:
        """Run a statement with psql; returns its output. ServiceError if it fails."""
        where = ["-h", HOST, "-p", str(service.port), "-U", "postgres"]
        options = ["-v", "ON_ERROR_STOP=1", "-qAt", "-c", statement]
        done = self.machine.run([postgres_tool("psql"), *where, *options])
        if done.returncode:
            raise ServiceError(f"{service.name}: {done.complaint}")
        return done.stdout.decode().strip()


def system_of(run: DrillRun) -> System:
    """The system that the drill's first step started."""
    assert isinstance(run.state, System), "the first step starts the system"
    return run.state


def answer_table(system: System, since: float) -> Iterator[dict[str, object]]:
    """What each client was answered since then: one row per client."""
    for client in system.clients:
        answers = client.answers()
        answers = answers[answers["began"] >= since]
        good = answers[answers["error"] == ""]
        seconds = sorted(float(value) for value in good["ended"] - good["began"])
        yield {
            "client": client.name,
            "kind": client.kind,
            "answered": len(good),
            "errors": len(answers) - len(good),
            "median_seconds": statistics.median(seconds) if seconds else None,
            "p95_seconds": seconds[int(0.95 * (len(seconds) - 1))] if seconds else None,
        }


def _client_kind(service: Service) -> str:
    if service.kind in STORES:
        return service.kind
    return "http" if service.health.kind == "http" else ""
