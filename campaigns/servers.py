"""Real servers on loopback, each with a copy of its own, which can be killed and started again.

They are the programs of the service drills, without namespaces around them: PostgreSQL and a
streaming replica, Redis and its replica, the drills' application, and moto's S3.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import boto3
import psutil
import psycopg
import redis

from recovery_pipelines.namespaces import as_user
from recovery_pipelines.tools import existing_user, find_tool, postgres_tool, run_tool

S3_KEYS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""What moto takes from everybody."""
BUCKET = "backups"
_START_SECONDS = 60.0
_LOOK_SECONDS = 0.1


@dataclass
class Server:
    """One server. `answers` raises until it serves."""

    name: str
    port: int
    command: Sequence[str]
    folder: Path
    answers: Callable[[], object]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when it answers."""
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=os.environ | self.environment,
                start_new_session=True,
            )
        (self.folder / f"{self.name}.pid").write_text(f"{self.process.pid}\n")
        until(self.answers, f"{self.name} to answer")

    def kill(self) -> None:
        """End it and all its processes at once; returns when they are gone. PostgreSQL does not
        start again beside one that is left."""
        if self.process and self.process.poll() is None:
            root = psutil.Process(self.process.pid)
            members = [root, *root.children(recursive=True)]
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            self.process.wait()
            psutil.wait_procs(members, timeout=_START_SECONDS)


def until(answers: Callable[[], object], what: str, seconds: float = _START_SECONDS) -> None:
    """Ask again and again until there is no error and the answer is not False."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if answers() is not False:
                return
            why = "it says no"
        except Exception as error:  # whatever a client raises while its server starts
            why = str(error)
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}: {why}")
        time.sleep(_LOOK_SECONDS)


@contextmanager
def servers(*names: str) -> Iterator[dict[str, Server]]:
    """The named ones, running, in this order; all are killed at the end, and their data is gone.

    database, database_replica, cache, cache_replica, storage, application (needs both stores).
    """
    running: dict[str, Server] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="recovery-servers-")))
        folder.chmod(0o755)  # PostgreSQL runs as another user
        for name in names:
            running[name] = _MAKERS[name](folder, running)
            stack.callback(running[name].kill)
            running[name].start()
        yield running


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- PostgreSQL ---------------------------------------------------------------------------


def ask_postgres(port: int, statement: str) -> object:
    """The first column of the first row."""
    address = f"host=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=2"
    with psycopg.connect(address, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
    return row[0] if row else None


def _database(folder: Path, running: Mapping[str, Server]) -> Server:
    data = _room(folder / "database")
    _as_postgres("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-N", cwd=folder)
    return _postgres("database", data, folder)


def _database_replica(folder: Path, running: Mapping[str, Server]) -> Server:
    data = _room(folder / "database_replica")
    source = ("-h", "127.0.0.1", "-p", str(running["database"].port), "-U", "postgres")
    _as_postgres(
        "pg_basebackup", "-D", str(data), *source, "-R", "-X", "stream", "-c", "fast", cwd=folder
    )
    return _postgres("database_replica", data, folder)


def _postgres(name: str, data: Path, folder: Path) -> Server:
    port = _free_port()
    options = [f"--port={port}", "--unix_socket_directories=", "--shared_buffers=32MB"]
    command = _for_postgres([postgres_tool("postgres"), "-D", str(data), *options])
    return Server(name, port, command, folder, lambda: ask_postgres(port, "select 1"))


def _room(data: Path) -> Path:
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(data, existing_user("postgres", "nobody"))
    return data


def _for_postgres(command: Sequence[str]) -> list[str]:
    """PostgreSQL does not run as root."""
    if os.geteuid() != 0:
        return list(command)
    return as_user(existing_user("postgres", "nobody"), command, ordinary_user=False)


def _as_postgres(program: str, *words: str, cwd: Path) -> None:
    done = run_tool(_for_postgres([postgres_tool(program), *words]), cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{program}: {done.complaint}")


# --- the others ---------------------------------------------------------------------------


def _cache(folder: Path, running: Mapping[str, Server]) -> Server:
    return _redis("cache", folder)


def _cache_replica(folder: Path, running: Mapping[str, Server]) -> Server:
    return _redis("cache_replica", folder, f"--replicaof 127.0.0.1 {running['cache'].port}")


def _redis(name: str, folder: Path, *options: str) -> Server:
    port = _free_port()
    (folder / name).mkdir()
    words = [word for option in options for word in option.split()]
    command = [find_tool("redis-server"), "--port", str(port), "--save", "", *words]
    command += ["--dir", str(folder / name)]

    def answers() -> object:
        with redis.Redis(port=port) as client:
            return client.ping()

    return Server(name, port, command, folder, answers)


def _storage(folder: Path, running: Mapping[str, Server]) -> Server:
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]

    def answers() -> object:
        # A bucket of moto's lives no longer than its process.
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="nobody",
            aws_secret_access_key="nothing",
            region_name="us-east-1",
        )
        return client.create_bucket(Bucket=BUCKET)

    return Server("storage", port, command, folder, answers)


def _application(folder: Path, running: Mapping[str, Server]) -> Server:
    port = _free_port()
    stores = ("--postgres", running["database"].port, "--redis", running["cache"].port)
    module = "recovery_pipelines.services.application"
    command = [sys.executable, "-m", module, "--port", str(port), *map(str, stores)]

    def answers() -> object:
        with socket.create_connection(("127.0.0.1", port), 2):
            return True

    return Server("application", port, command, folder, answers)


_MAKERS: dict[str, Callable[[Path, Mapping[str, Server]], Server]] = {
    "database": _database,
    "database_replica": _database_replica,
    "cache": _cache,
    "cache_replica": _cache_replica,
    "storage": _storage,
    "application": _application,
}
