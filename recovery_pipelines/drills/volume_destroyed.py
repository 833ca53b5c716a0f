"""The scenario `complete_system_failure` where the volume is lost too: only backups are left.

PostgreSQL comes back from pgBackRest and its archive of WAL, up to a named restore point at which
its contents are known; what else lies on the volume comes back from restic.
"""

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from recovery_pipelines.checks import Canary, self_test_verdict
from recovery_pipelines.databases.base import Contents, differences
from recovery_pipelines.drills.preparation import prepare
from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.drills.service_checks import FEWEST_ANSWERS
from recovery_pipelines.drills.system import System, answer_table, system_of
from recovery_pipelines.drills.system_failure import judge_system, stop_all
from recovery_pipelines.engines.base import Snapshot
from recovery_pipelines.engines.pgbackrest import Cluster, PgBackRest
from recovery_pipelines.engines.restic import ResticEngine
from recovery_pipelines.errors import EngineError, ServiceError
from recovery_pipelines.services.host import Machine
from recovery_pipelines.services.service import ROOM, VOLUME, Service
from recovery_pipelines.services.stack import resolve
from recovery_pipelines.tools import Finished, postgres_tool
from recovery_pipelines.verdict import CheckResult, Verdict

CHECKS = (
    "volume_was_destroyed",
    "backups_complete",
    "database_identical",
    "database_writable",
    "contents_self_test",
    "self_test",
)
"""Checks beside the plan's criteria."""

_BACKUPS = "backups"
_ANSWERS = FEWEST_ANSWERS + 20
_ANSWERS_AFTER_BACKUP = 20
_ARCHIVED_WITHIN_SECONDS = 30.0
_START_SECONDS = 60
_LOOK_SECONDS = 0.05
_TOKEN = ".recovery-volume"
_NO_DATABASE = "the stack has no PostgreSQL"


class _MachineRestic(ResticEngine):
    """restic inside the machine, where the volume is."""

    def __init__(self, system: System, repository: Path, work: Path) -> None:
        super().__init__(repository, work, timeout_seconds=system.run.remaining_seconds)
        self._system = system

    def _run(
        self,
        doing: str,
        *arguments: str | bytes | Path,
        program: str | None = None,
        cwd: Path | None = None,
        stdin: bytes | None = None,
        environment: Mapping[str, str] | None = None,
        into: Path | None = None,
    ) -> Finished:
        settings = self._environment | dict(environment or {})
        done = self._system.machine.run(
            [
                *("env", "-C", cwd or "/", *(f"{key}={value}" for key, value in settings.items())),
                program or self.program,
                *(os.fsdecode(argument) for argument in arguments),
            ],
            stdin=(stdin or b"").decode(),
            timeout_seconds=self._system.run.remaining_seconds(),
        )
        if done.returncode:
            code = done.returncode
            meaning = self.exit_codes.get(code, "failed")
            raise EngineError(f"{doing}: restic exit code {code} ({meaning}): {done.complaint}")
        return done


@dataclass
class _Database:
    """One PostgreSQL of the stack: its backups, and what it held at its restore point."""

    service: Service
    engine: PgBackRest
    snapshots: list[Snapshot] = field(default_factory=list)
    restore_point: str = ""
    segment: str = ""
    expected: Contents = field(default_factory=dict)
    found: Contents | None = None
    canaries: dict[str, list[str]] = field(default_factory=dict)
    written: str = ""


@dataclass
class Backups:
    """Everything that is outside the volume when it is lost."""

    system: System
    databases: list[_Database]
    restic: _MachineRestic
    files: dict[str, Snapshot] = field(default_factory=dict)
    """By service: the backup of its directory."""
    backed_up_at: dict[str, float] = field(default_factory=dict)
    """By service: what was acknowledged before this monotonic time is in its last backup."""
    token: str = ""
    """What the old volume held in a file of its own."""
    problems: dict[str, str] = field(default_factory=dict)
    """By service: empty if its backups are complete and undamaged, else what is wrong."""

    @property
    def with_files(self) -> list[Service]:
        """Services whose directories are backed up as files."""
        kinds = ("redis", "command")
        return [service for service in self.system.services if service.kind in kinds]

    @contextmanager
    def checked(self, name: str) -> Iterator[None]:
        """What goes wrong in the block is a problem of that service's backups."""
        try:
            yield
            self.problems[name] = ""
        except EngineError as error:
            self.problems[name] = str(error)


def shutdown_all_services(run: DrillRun) -> pd.DataFrame:
    """Start the stack with an archive of WAL, then stop all services in order, dependants first.

    Returns one row per service: `service`, `kind`, `dependants`, `falls_with_it`, `depends_on`,
    `critical`, `stopped_after_seconds`.
    """
    table = pd.DataFrame()
    with run.stage("shutdown_all_services"), run.needing(CHECKS):
        prepare(run)
        run.state = system = _start(run)
        table = stop_all(run, system)
    return table


def power_off_simulation(run: DrillRun) -> pd.DataFrame:
    """Back up the running, written-to system, then destroy it with its volume.

    Returns one row per client with what it was answered until then (see `answer_table`).
    """
    table = pd.DataFrame()
    with run.stage("power_off_simulation") as wanted:
        if wanted:
            system, backups = system_of(run), _backups_of(run)
            system.machine.ask("start")
            system.observed_from["before"] = since = system.start_clients()
            with run.working("clients answered"):
                system.await_answers(_ANSWERS // 2, since)
            _back_up(run, backups)
            with run.working("clients answered after the last backup"):
                system.await_answers(_ANSWERS_AFTER_BACKUP, time.monotonic())
                system.await_answers(_ANSWERS, since)
            backups.token = secrets.token_hex(16)
            _inside(system, "sh", "-c", f"echo {backups.token} > {VOLUME / _TOKEN}")
            run.damaged_at = time.monotonic()
            system.machine.end()
            run.sandbox.tree("machine-main").clear()
            run.journal(event="volume destroyed")
            run.fault_kinds = {"volume_destroyed": 1}
            system.cut = {"power_cut": False}
            table = pd.DataFrame(answer_table(system, since))
        run.keep("answers_before", table)
    return table


def initiate_recovery(run: DrillRun) -> pd.DataFrame:
    """Make a new volume, restore it from the backups, look at the databases, start all services.

    Returns the supervisor's events since then: `seconds`, `service`, `event`, `detail`. What
    cannot be restored is a finding of the next step, not an error of this one.
    """
    table = pd.DataFrame(columns=["seconds", "service", "event", "detail"])
    with run.stage("initiate_recovery") as wanted:
        if wanted and (system := system_of(run)).cut:
            backups = _backups_of(run)
            began = time.monotonic()
            system.machine = Machine(
                run.sandbox,
                "main",
                system.services,
                system.logs,
                binds={_BACKUPS: run.sandbox.tree(_BACKUPS).path},
                new_volume=True,
            )
            run.checks.append(_volume_was_destroyed(backups))
            try:
                _restore(run, backups)
                with run.phase("publish"):
                    system.machine.ask("start")
                run.published = True
            except (EngineError, ServiceError) as error:
                run.note_not_recovered(error)
            run.checks += _contents_checks(run, backups)
            table = system.events_since(began)
        run.keep("recovery_events", table)
    return table


def validate_restoration(run: DrillRun) -> pd.DataFrame:
    """Look at services and data, compare with what was acknowledged, and show that the criteria
    can fail.

    Returns one row per client with what it was answered after the recovery.
    """
    table = pd.DataFrame()
    with run.stage("validate_restoration") as wanted:
        if wanted and (system := system_of(run)).cut and run.damaged_at is not None:
            backed_up_at = _backups_of(run).backed_up_at
            table = judge_system(run, system, run.damaged_at, backed_up_at=backed_up_at)
        run.keep("checks", pd.DataFrame(run.checks))
    return table


STEPS = {
    step.__name__: step
    for step in (
        shutdown_all_services,
        power_off_simulation,
        initiate_recovery,
        validate_restoration,
    )
}


# --- backing up -----------------------------------------------------------------------------


@dataclass
class _BackedUpSystem(System):
    backups: Backups | None = None


def _backups_of(run: DrillRun) -> Backups:
    system = system_of(run)
    assert isinstance(system, _BackedUpSystem) and system.backups is not None
    return system.backups


def _start(run: DrillRun) -> System:
    """The stack, its PostgreSQL servers with an archive of WAL outside the volume."""
    home = run.sandbox.tree(_BACKUPS).path
    home.chmod(0o755)
    services, engines = [], {}
    for service in resolve(run.spec.stack.services):
        if service.kind == "postgres":
            engine = engines[service.name] = _engine(run, home, service)
            at = service.command.index(str(service.data)) + 1  # the plan's own settings come later
            settings = [f"--{key}={value}" for key, value in engine.settings.items()]
            command = (*service.command[:at], *settings, *service.command[at:])
            service = replace(service, command=command)
        services.append(service)
    system = _BackedUpSystem.start(run, services, {_BACKUPS: home})
    assert isinstance(system, _BackedUpSystem)
    restic = _MachineRestic(
        system, run.sandbox.tree("repository").path, run.sandbox.tree("engine").path
    )
    databases = [
        _Database(service, engines[service.name]) for service in services if service.name in engines
    ]
    system.backups = Backups(system, databases, restic)
    run.state = system
    restic.init()
    for database in databases:
        database.engine.create_stanza()
        _ask_contents(system, database.service, "sample")
    return system


def _engine(run: DrillRun, home: Path, service: Service) -> PgBackRest:
    folder = home / service.name
    folder.mkdir()

    def run_there(argv: Sequence[str]) -> Finished:
        timeout_seconds = run.remaining_seconds()
        machine = system_of(run).machine
        return machine.run(argv, user=service.user, timeout_seconds=timeout_seconds)

    engine = PgBackRest(
        folder / "repository",
        folder,
        Cluster(service.name, service.data, service.port),
        run_there,
        lambda path: ROOM / _BACKUPS / path.relative_to(home),
    )
    engine.configure()
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, service.user)
    return engine


def _back_up(run: DrillRun, backups: Backups) -> None:
    """Full, differential and incremental backups while clients write; then the restore points."""
    system = backups.system
    for database in backups.databases:
        for kind in ("full", "diff", "incr"):
            with run.working(f"{kind} backup of {database.service.name}") as working:
                made = database.engine.backup(kind, next(iter(database.snapshots), None))
                working(made.snapshot_id, 1.0)
            database.snapshots.append(made)
            _note(run, "pgbackrest", made)
    for service in backups.with_files:
        unsynced_seconds = run.spec.stack.services[service.name].may_lose_seconds
        backups.backed_up_at[service.name] = time.monotonic() - unsynced_seconds
        with run.working(f"backup of {service.name}"), _still(system, service):
            made = backups.restic.backup(service.data, None)
        backups.files[service.name] = made
        _note(run, "restic", made)
    for database in backups.databases:
        database.restore_point = f"recovery-{run.seed('restore point'):x}"
        backups.backed_up_at[database.service.name] = time.monotonic()
        with run.working(f"restore point of {database.service.name} archived") as working:
            told = _ask_contents(system, database.service, "mark", database.restore_point)
            database.expected, database.segment = told["contents"], told["segment"]
            deadline = time.monotonic() + _ARCHIVED_WITHIN_SECONDS
            while not database.engine.is_archived(database.segment):
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"{database.service.name}: WAL segment {database.segment} was not archived "
                        f"within {_ARCHIVED_WITHIN_SECONDS:.0f} s: see archive_command in its log"
                    )
                time.sleep(_LOOK_SECONDS)
            working(f"{database.restore_point} at {told['lsn']}", 1.0)
    run.measured["pgbackrest_version"] = ", ".join(
        sorted({database.engine.version() for database in backups.databases})
    )
    run.left_out.append(
        "the time between scheduled backups: the drill's last backups are made right before the "
        "failure, and the loss is counted from them"
    )


def _note(run: DrillRun, tool: str, made: Snapshot) -> None:
    run.snapshots.append(
        {
            "id": made.snapshot_id,
            "kind": f"{tool} {made.kind}",
            "created_at": made.created_at.isoformat(),
        }
    )


@contextmanager
def _still(system: System, service: Service) -> Iterator[None]:
    """Redis does not rewrite its append-only files meanwhile: a copy would be torn."""
    if service.kind != "redis":
        yield
        return

    def ask(*words: str) -> str:
        return _inside(system, "redis-cli", "-p", str(service.port), *words)

    key = "auto-aof-rewrite-percentage"
    percentage = ask("CONFIG", "GET", key).splitlines()[-1]
    ask("CONFIG", "SET", key, "0")
    try:
        while "aof_rewrite_in_progress:1" in ask("INFO", "persistence"):
            system.run.remaining_seconds()
            time.sleep(_LOOK_SECONDS)
        yield
    finally:
        ask("CONFIG", "SET", key, percentage)


# --- restoring ------------------------------------------------------------------------------


def _restore(run: DrillRun, backups: Backups) -> None:
    """Check the backups, restore everything from them, and look at the databases."""
    system = backups.system
    with run.phase("fetch"):
        for service in backups.with_files:
            staging = run.sandbox.tree(f"restored-{service.name}").path
            system.machine.ask("make_room", name=service.name)
            backups.restic.restore(backups.files[service.name], staging)
            _inside(system, "cp", "-a", f"{staging}/.", str(service.data))
        for database in backups.databases:
            system.machine.ask("make_room", name=database.service.name)
            label, timeline = database.snapshots[-1].snapshot_id, int(database.segment[:8], 16)
            database.engine.restore(label, database.restore_point, timeline)
    with run.phase("verify"):
        for name, snapshot in backups.files.items():
            with backups.checked(name):
                backups.restic.full_check([snapshot])
        for database in backups.databases:
            with backups.checked(database.service.name):
                database.engine.full_check(database.snapshots, database.segment)
            _look_at(run, system, database)


def _look_at(run: DrillRun, system: System, database: _Database) -> None:
    """Start the server for us alone, read what it holds at the restore point, and stop it."""
    service = database.service
    log = ROOM / _BACKUPS / service.name / "recovery.log"
    server = [postgres_tool("pg_ctl"), "-D", str(service.data), "-w", "-t", str(_START_SECONDS)]
    options = (
        f"-p {service.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= "
        "-c archive_mode=off -c autovacuum=off"
    )
    done = system.machine.run([*server, "-l", log, "-o", options, "start"], user=service.user)
    while done.returncode == 0 and not _has_replayed(system, service):
        run.remaining_seconds()
        time.sleep(_LOOK_SECONDS)
        done = system.machine.run([*server, "status"], user=service.user)
    if done.returncode:
        said = system.machine.run(["tail", "-n", "40", log]).stdout.decode(errors="replace")
        fatal = [line for line in said.splitlines() if "FATAL" in line or "PANIC" in line]
        raise ServiceError(f"{service.name} does not start from its backup: {fatal[-3:]}")
    database.found = _ask_contents(system, service, "describe")
    database.canaries = _ask_contents(system, service, "canaries")
    database.written = _ask_contents(system, service, "write")
    done = system.machine.run([*server, "-m", "fast", "stop"], user=service.user)
    if done.returncode:
        raise ServiceError(f"{service.name} does not stop: {done.complaint}")


def _has_replayed(system: System, service: Service) -> bool:
    """Whether the server is through with its WAL; before, it would show an older state."""
    try:
        return system.sql(service, "select pg_is_in_recovery()") == "f"
    except ServiceError:
        return False


def _volume_was_destroyed(backups: Backups) -> CheckResult:
    """Nothing of the old volume is on the new one."""
    expected = "the new volume holds nothing of the old one"
    argv = ["find", str(VOLUME), "-mindepth", "1", "-not", "-name", "lost+found"]
    done = backups.system.machine.run(argv)
    left = done.stdout.decode(errors="replace").split()
    if done.returncode or not backups.token:
        return CheckResult("volume_was_destroyed", Verdict.ERROR, expected, done.complaint)
    verdict = Verdict.INVALID if left else Verdict.PASS
    return CheckResult("volume_was_destroyed", verdict, expected, f"{len(left)} entries")


def _contents_checks(run: DrillRun, backups: Backups) -> list[CheckResult]:
    """What became of the databases, and whether their comparison finds damage."""
    names = [service.name for service in backups.with_files]
    names += [database.service.name for database in backups.databases]
    problems = {name: backups.problems.get(name, "was not checked") for name in names}
    canaries = [
        Canary("database_identical", kind, b"", bool(told), "; ".join(told)[:300])
        for database in backups.databases
        for kind, told in database.canaries.items()
    ]
    run.canaries += [asdict(canary) for canary in canaries]
    return [
        _all_well("backups_complete", "every recorded backup and every WAL segment", problems),
        _all_well(
            "database_identical",
            "rows, sequences and schema objects as at the restore point",
            {d.service.name: _unlike(d) for d in backups.databases},
        ),
        _all_well(
            "database_writable",
            "a row is written and read back",
            {
                d.service.name: "" if d.written == "written" else "could not be written to"
                for d in backups.databases
            },
        ),
        replace(self_test_verdict(canaries), name="contents_self_test"),
    ]


def _unlike(database: _Database) -> str:
    if database.found is None:
        return "could not be read"
    told = differences(database.expected, database.found)
    return "; ".join([f"{name}: {what}" for name, what in told.items()][:10])


def _all_well(name: str, expected: str, state: Mapping[str, str]) -> CheckResult:
    wrong = [f"{service}: {why}" for service, why in state.items() if why]
    if wrong:
        return CheckResult(name, Verdict.FAIL, expected, "; ".join(wrong))
    if not state:
        return CheckResult(name, Verdict.UNVERIFIED, expected, _NO_DATABASE)
    return CheckResult(name, Verdict.PASS, expected, f"{', '.join(state)}: well")


def _ask_contents(system: System, service: Service, do: str, name: str = "") -> Any:
    return system.machine.ask("contents", what=do, port=service.port, name=name)["said"]


def _inside(system: System, *argv: str) -> str:
    done = system.machine.run(argv)
    if done.returncode:
        raise ServiceError(f"{Path(argv[0]).name}: {done.complaint}")
    return done.stdout.decode().strip()
