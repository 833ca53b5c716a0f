"""A PostgreSQL cluster of our own in one folder, reached through a socket beside it.

PostgreSQL refuses root, and nobody else can enter a drill's folders. Where we are root its programs
run as a user of their own, in namespaces where they see the cluster's folder and its neighbours.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import psycopg

from recovery_pipelines.databases import postgres_contents
from recovery_pipelines.databases.base import Contents, DatabaseFault
from recovery_pipelines.errors import DatabaseError
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.tools import existing_user, find_tool, postgres_programs, run_tool

HERE = "/proc/self/cwd"
"""The socket's folder for a program that runs in it: the path of a socket must be short."""
PORT = 5432
SEGMENT_BYTES = 1 << 20
"""Of one file of WAL."""
_ROOM = Path("/mnt")
_ENTER = (
    'cd "$1" && mount -t tmpfs -o mode=755 tmpfs "$0" && for each in */; do '
    'mkdir "$0/$each" && mount --no-canonicalize --bind "$each" "$0/$each" || exit; done; '
    'cd "$0/$2" && shift 2 && exec "$@"'
)
_HBA = "local all all trust\nlocal replication all trust\n"
_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "shared_buffers": "16MB",
    "max_connections": "20",
    "dynamic_shared_memory_type": "mmap",  # files in its own folder, whoever kills it
    "timezone": "UTC",
    "logging_collector": "off",
    "log_destination": "stderr",
}
_OF_BACKUPS = "^(archive_|restore_command|recovery_|primary_)"
"""Settings that a backup or a restore makes."""
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_MAKE_SECONDS = 120.0
_LOOK_SECONDS = 0.02


class Site:
    """The folder that holds the cluster's folder and its neighbours, such as a repository."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @cached_property
    def user(self) -> str:
        """Whom the programs run as; empty: as ourselves."""
        return existing_user("postgres", "nobody") if os.geteuid() == 0 else ""

    def seen(self, path: Path) -> Path:
        """Where the programs find something in it."""
        return _ROOM / path.absolute().relative_to(self.root) if self.user else path.absolute()

    def give(self, *folders: Path) -> None:
        """Let the programs write into these folders."""
        for folder in folders if self.user else ():
            shutil.chown(folder, self.user)

    def command(
        self, argv: Sequence[str | Path], folder: Path, *, end_with: str = "KILL"
    ) -> list[str]:
        """A command that runs in this folder; if we die it gets the signal `end_with`."""
        words = [str(word) for word in argv]
        ending = (find_tool("setpriv", "util-linux"), "--pdeathsig", end_with)
        if not self.user:
            return ["env", "-C", str(folder), *ending, "--", *words]
        namespaces = (find_tool("unshare", "util-linux"), "--mount", "--ipc")
        inside = folder.absolute().relative_to(self.root)
        enter = ("sh", "-c", _ENTER, str(_ROOM), str(self.root), str(inside))
        who = ("--reuid", self.user, "--regid", self.user, "--init-groups")
        return [*namespaces, "--propagation", "private", *enter, *ending, *who, "--", *words]


def beside_of(cluster: Path) -> Path:
    """The folder of the server's socket and log."""
    return cluster.with_name(f"{cluster.name}-server")


@contextmanager
def connect(cluster: Path, database: str = "postgres") -> Iterator[psycopg.Connection[Any]]:
    """A connection, without implicit transactions, to the server of the cluster in this folder."""
    with explained(cluster), closing(_connected(cluster, database)) as connection:
        yield connection


@contextmanager
def serve(
    cluster: Path,
    environment: Mapping[str, str],
    settings: Mapping[str, str],
    on_start: Callable[[int], None] = lambda pid: None,
) -> Iterator[psycopg.Connection[Any]]:
    """A server on a cluster, from the end of its recovery until the end of the block; then it is
    shut down cleanly. DatabaseError, with what the server said, if it does not start."""
    site, beside = Site(cluster.parent), beside_of(cluster)
    beside.mkdir(0o700, exist_ok=True)
    (beside / "hba.conf").write_text(_HBA)
    site.give(beside, beside / "hba.conf")
    paths = {
        "unix_socket_directories": f"../{beside.name}",
        "hba_file": str(site.seen(beside / "hba.conf")),
    }
    words = [f"--{key}={value}" for key, value in (_SETTINGS | paths | dict(settings)).items()]
    argv = [str(postgres_programs() / "postgres"), "-D", str(site.seen(cluster)), *words]
    log = beside / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            site.command(argv, beside, end_with="QUIT"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", **environment},
        )
    how = signal.SIGQUIT
    try:
        on_start(server.pid)
        with explained(cluster), closing(_await(server, cluster, log)) as connection:
            yield connection
        how = signal.SIGINT
    finally:
        _stop(server, how)


class PostgresDatabase:
    """A running PostgreSQL server and its database `postgres`."""

    kind: ClassVar[str] = "postgres"
    faults: ClassVar[Mapping[str, DatabaseFault]]

    def __init__(self, folder: Path, connection: psycopg.Connection[Any]) -> None:
        self.folder = folder
        self.connection = connection

    def fill(self, rows: int, seed: int) -> None:
        with explained(self.folder):
            postgres_contents.make_sample(self.connection, rows, seed)

    def load(self, file: Path) -> None:
        raise DatabaseError("PostgreSQL is drilled on made rows: audit your own backups instead")

    def change(self, seed: int) -> None:
        with explained(self.folder):
            postgres_contents.change_sample(self.connection, seed)

    def describe(self) -> Contents:
        """Of the database, and the settings in the cluster's files."""
        with explained(self.folder), self.connection.transaction():
            found = postgres_contents.describe(self.connection)
            settings = self.connection.execute(
                "select distinct on (name) 'setting ' || name, setting "
                "from pg_catalog.pg_file_settings where name !~ %s order by name, seqno desc",
                (_OF_BACKUPS,),
            )
            return found | {name: what or "" for name, what in settings}

    def problems(self) -> str:
        """Of all databases that can be connected to: what is copied for new ones may be torn."""
        said = []
        with explained(self.folder):
            names = self.connection.execute(
                "select datname from pg_catalog.pg_database where datallowconn order by datname"
            ).fetchall()
        for (name,) in names:
            with connect(self.folder, name) as connection:
                if found := postgres_contents.amcheck(connection):
                    said.append(f"{name}: {found}")
        return "; ".join(said)

    def written(self) -> bool:
        try:
            return postgres_contents.write_test(self.connection) == "written"
        except psycopg.Error:
            return False


@contextmanager
def open_postgres(
    folder: Path, sandbox: Sandbox, *, new: bool = False
) -> Iterator[PostgresDatabase]:
    """A server on the cluster in `folder`, or on one that is made there.

    A new one can be archived from, and does not wait for disks: nothing cuts its power.
    """
    settings = {"archive_mode": "off"}
    if new:
        _make_cluster(folder, sandbox.environment)
        settings = {"archive_mode": "on", "fsync": "off"}
    with serve(folder, sandbox.environment, settings, sandbox.lease.add_process) as connection:
        yield PostgresDatabase(folder, connection)


def _make_cluster(folder: Path, environment: Mapping[str, str]) -> None:
    site, beside = Site(folder.parent), beside_of(folder)
    beside.mkdir(0o700, exist_ok=True)
    site.give(folder, beside)
    initdb = (postgres_programs() / "initdb", "-D", site.seen(folder), "-U", "postgres")
    options = ("-A", "trust", "--data-checksums", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
    size = f"--wal-segsize={SEGMENT_BYTES >> 20}"
    command = site.command([*initdb, *options, size], beside)
    done = run_tool(command, env=environment, timeout_seconds=_MAKE_SECONDS)
    if done.returncode:
        raise DatabaseError(f"initdb in {folder}: {done.complaint}")


def _connected(cluster: Path, database: str = "postgres") -> psycopg.Connection[Any]:
    descriptor = os.open(beside_of(cluster), os.O_PATH | os.O_DIRECTORY)
    try:
        host = f"/proc/self/fd/{descriptor}"
        return psycopg.connect(
            host=host, port=PORT, user="postgres", dbname=database, autocommit=True
        )
    finally:
        os.close(descriptor)


def _await(server: "subprocess.Popen[bytes]", cluster: Path, log: Path) -> psycopg.Connection[Any]:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return _connected(cluster)
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise DatabaseError(f"PostgreSQL does not start: {_complaint(log)}") from None
        time.sleep(_LOOK_SECONDS)


def _complaint(log: Path) -> str:
    said = log.read_text(errors="replace").strip().splitlines()
    fatal = [line for line in said if "FATAL" in line or "PANIC" in line]
    refused = ("is starting up", "not accepting connections", "not yet accepting")
    mattering = [line for line in fatal if not any(words in line for words in refused)]
    return " / ".join((mattering or said)[-3:])


def _stop(server: "subprocess.Popen[bytes]", how: signal.Signals) -> None:
    try:
        if server.poll() is None:
            server.send_signal(how)
        server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise DatabaseError(f"PostgreSQL does not stop within {_STOP_SECONDS:.0f} s") from None
    finally:
        server.kill()
        server.wait()


@contextmanager
def explained(cluster: Path) -> Iterator[None]:
    """What PostgreSQL says is a DatabaseError that names the cluster."""
    try:
        yield
    except (psycopg.Error, OSError) as error:
        said = " ".join(str(error).split())
        raise DatabaseError(f"PostgreSQL in {cluster}: {said}") from error


def _damage(statement: str) -> Callable[[PostgresDatabase, Random], str]:
    def inject(database: PostgresDatabase, _: Random) -> str:
        with explained(database.folder):
            database.connection.execute(statement.encode())
        return statement

    return inject


_INDEX_WITHOUT_A_ROW = (
    "create table recovery_sample.unindexed (x int); "
    "create index unindexed_x on recovery_sample.unindexed (x); "
    "update pg_catalog.pg_index set indisready = false "
    "where indexrelid = 'recovery_sample.unindexed_x'::pg_catalog.regclass; "
    "insert into recovery_sample.unindexed values (1); "
    "update pg_catalog.pg_index set indisready = true "
    "where indexrelid = 'recovery_sample.unindexed_x'::pg_catalog.regclass"
)
PostgresDatabase.faults = {
    "index_lacks_a_row": DatabaseFault("files_accessible", _damage(_INDEX_WITHOUT_A_ROW)),
    **{
        kind: DatabaseFault(criterion, _damage(statement))
        for kind, (criterion, statement) in postgres_contents.DAMAGES.items()
    },
}
