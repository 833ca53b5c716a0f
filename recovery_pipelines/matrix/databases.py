"""The bench for databases: backups of a made one, and the truth about each of them."""

import re
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from recovery_pipelines.checks import CRITERIA
from recovery_pipelines.databases.base import Contents, DatabaseFault
from recovery_pipelines.databases.judge import judge, look_at
from recovery_pipelines.databases.opening import faults_of, make_database, open_database
from recovery_pipelines.databases.postgres import HERE, PORT, beside_of, open_postgres
from recovery_pipelines.databases.redis import RedisDatabase, open_redis
from recovery_pipelines.databases.sqlite import FILE_NAME
from recovery_pipelines.engines.base import Engine, Snapshot, engine_class
from recovery_pipelines.errors import DatabaseError
from recovery_pipelines.faults.base import Family, Fault, InjectedFault, Layer
from recovery_pipelines.matrix.bench import INCREMENTS, TOOL_TIMEOUT_SECONDS, Bench, Row, refill
from recovery_pipelines.plan.databases import KIND_OF
from recovery_pipelines.sandbox import Sandbox, Tree
from recovery_pipelines.tools import Finished, postgres_programs, run_tool

_BYTES_PER_ROW = {"sqlite": 10_000, "redis": 10_000, "postgres": 50}
"""So that the largest file of a copy of PostgreSQL is a table, and not a segment of its WAL."""
_SETVAL = re.compile(r"SELECT pg_catalog\.setval\('(.+)', (\d+), (true|false)\);")
_LOGGED_AHEAD = 32
"""So many numbers of a sequence may be lost when PostgreSQL replays its log: SEQ_LOG_VALS."""

Truth = Any
"""What a database holds, read without any code of the project; None if it cannot be read."""


@dataclass(frozen=True)
class DatabaseBench(Bench):
    """As `Bench`, of a database: a restored tree holds its files."""

    contents: list[Contents]
    """What each generation was described as, oldest first."""

    @property
    def kind(self) -> str:
        return KIND_OF[self.engine_name]

    def copy_faults(self) -> Mapping[str, Fault]:
        return {
            kind: _FrontDoor(kind, planned, self.sandbox, self.kind)
            for kind, planned in faults_of(self.kind).items()
        }

    def examined(self, tree: Tree, generation: int) -> Row:
        truth = look_truly(self.kind, tree.path, self.sandbox)
        began = time.monotonic()
        state = look_at(self.kind, tree.path, self.sandbox, self.contents[generation])
        seconds = time.monotonic() - began
        results = judge(list(CRITERIA), state)
        return {
            "generation": generation,
            "differs": not is_brought_back(truth, self.truths[generation]),
            "detected": not state.is_right,
            "kinds": sorted({name.partition(" ")[0] for name in state.differences}),
            **{result.name: str(result.verdict) for result in results},
            "manifest_seconds": seconds,
            "applications_seconds": 0.0,
        }


@dataclass(frozen=True)
class _FrontDoor:
    """A damage through the database itself, as a fault of the tree that holds its files."""

    kind: str
    planned: DatabaseFault
    sandbox: Sandbox
    database: str

    @property
    def family(self) -> Family:
        return self.planned.family

    @property
    def caught_by(self) -> tuple[str, ...]:
        return (self.planned.caught_by,)

    def inject(
        self, tree: Tree, layer: Layer, rng: Random, avoid: Collection[bytes] = ()
    ) -> InjectedFault | None:
        with open_database(self.database, tree.path, self.sandbox) as database:
            before = database.describe()
            done = self.planned.inject(database, rng)
            if not done:
                return None
            return self.planned.done(self.kind, layer, done, before, database.describe())


@contextmanager
def open_database_bench(
    home: Path, engine_name: str, seed: int, size_bytes: int
) -> Iterator[DatabaseBench]:
    """A made database of this seed, backed up in a sandbox below `home`, which ends with it."""
    make: Callable[..., Engine] = engine_class(engine_name)
    kind = KIND_OF[engine_name]
    with Sandbox.create(home, f"matrix-{engine_name}-{seed}") as sandbox:
        engine = make(
            sandbox.tree("repository").path,
            sandbox.tree("engine").path,
            timeout_seconds=TOOL_TIMEOUT_SECONDS,
            environment=sandbox.environment,
        )
        engine.init()
        live = sandbox.tree("live")
        ledger: list[Snapshot] = []
        truths: list[Truth] = []
        contents: list[Contents] = []
        rows = max(size_bytes // _BYTES_PER_ROW[kind], 100)
        with make_database(
            kind, live.path, sandbox, rows=rows, seed=seed, taken_from=None
        ) as database:
            for generation in range(INCREMENTS + 1):
                if generation:
                    database.change(1000 * seed + generation)
                if isinstance(database, RedisDatabase):
                    truths.append(_redis_truth(database.client))
                elif kind == "postgres":
                    truths.append(_postgres_truth(live.path))
                else:
                    truths.append(_sqlite_truth(live.path))
                contents.append(database.describe())
                ledger.append(engine.backup(live.path, ledger[-1] if ledger else None))
        live.clear()
        engine.restore(ledger[-1], sandbox.tree("sound-copy").path)
        refill(sandbox.tree("sound-repository"), sandbox.tree("repository"))
        yield DatabaseBench(engine_name, seed, engine, sandbox, ledger, truths, contents)


def is_brought_back(found: Truth, written: Truth) -> bool:
    """Whether the truth about a restored database is that about the one that was backed up."""
    if isinstance(found, _PostgresTruth) and isinstance(written, _PostgresTruth):
        return found.brings_back(written)
    return bool(found == written)


def look_truly(kind: str, folder: Path, sandbox: Sandbox) -> Truth:
    """The truth about the database whose files are in `folder`."""
    if kind == "sqlite":
        return _sqlite_truth(folder)
    try:
        if kind == "postgres":
            with open_postgres(folder, sandbox):
                return _postgres_truth(folder, "--heapallindexed", "--parent-check")
        with open_redis(folder, sandbox) as database:
            return _redis_truth(database.client)
    except DatabaseError:
        return None


def _sqlite_truth(folder: Path) -> Truth:
    """SQLite's own dump as text, what it says of its indexes, and the file's mode and owner."""
    file = folder / FILE_NAME
    try:
        status = file.stat()
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            said = connection.execute("pragma integrity_check").fetchall()
            version = connection.execute("pragma user_version").fetchall()
            dump = list(connection.iterdump())
    except (sqlite3.Error, OSError, UnicodeError):
        return None
    return said, version, dump, status.st_mode, status.st_uid, status.st_gid


def _redis_truth(client: Any) -> Truth:
    """Every key as Redis writes it into a dump (sets, which have no order, as sets), with its
    expiry; and its users."""
    keys = {
        key: (
            client.smembers(key) if client.type(key) == b"set" else client.dump(key),
            client.execute_command("PEXPIRETIME", key),
        )
        for key in client.keys("*")
    }
    return keys, client.execute_command("ACL", "LIST")


@dataclass(frozen=True)
class _PostgresTruth:
    """What a cluster is dumped as."""

    dump: str
    sequences: Mapping[str, int]
    damage: str
    settings: bytes

    def brings_back(self, written: "_PostgresTruth") -> bool:
        """A sequence may have jumped forward, as it may when a log is replayed."""
        if self.sequences.keys() != written.sequences.keys():
            return False
        jumps = [self.sequences[name] - at for name, at in written.sequences.items()]
        same = [(each.dump, each.damage, each.settings) for each in (self, written)]
        return same[0] == same[1] and all(0 <= jump <= _LOGGED_AHEAD for jump in jumps)


def _postgres_truth(folder: Path, *checks: str) -> Truth:
    """pg_dumpall's text of the cluster whose server runs, with pg_amcheck's of its files if
    `checks` are its options; None if it cannot be dumped."""
    dumped = _client(folder, "pg_dumpall")
    if dumped.returncode:
        return None
    damage = ""
    if checks:
        looked = _client(folder, "pg_amcheck", "--install-missing", "-d", "postgres", *checks)
        damage = looked.said if looked.returncode else ""
        gone = _client(folder, "psql", "-qc", "drop extension if exists amcheck", "postgres")
        damage += gone.complaint if gone.returncode else ""
    sequences: dict[str, int] = {}
    kept = []
    for line in dumped.stdout.decode(errors="surrogateescape").splitlines():
        if found := _SETVAL.fullmatch(line):
            sequences[f"{found[1]} {found[3]}"] = int(found[2])
        elif not line.startswith(("\\restrict", "\\unrestrict")):  # a key of each dump's own
            kept.append(line)
    settings = (folder / "postgresql.conf").read_bytes()
    return _PostgresTruth("\n".join(kept), sequences, damage, settings)


def _client(folder: Path, program: str, *words: str) -> Finished:
    server = ("-h", HERE, "-p", str(PORT), "-U", "postgres")
    return run_tool(
        [postgres_programs() / program, *server, *words],
        cwd=beside_of(folder),
        timeout_seconds=TOOL_TIMEOUT_SECONDS,
    )
