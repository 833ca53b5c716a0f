"""A PostgreSQL server on a host: primary or standby, asked, promoted, stopped, rewound, followed.

It is governed through its unix socket, which no cut of the network touches.
"""

import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from recovery_pipelines.errors import NetworkError
from recovery_pipelines.network.hosts import Host
from recovery_pipelines.network.measure import await_condition
from recovery_pipelines.tools import run_tool

PORT = 5432
WAIT_SECONDS = 20.0
SETTINGS = {
    "shared_buffers": "16MB",
    "max_connections": "40",
    "timezone": "UTC",
    "wal_keep_size": "256MB",
    "wal_receiver_timeout": "2s",
    "wal_sender_timeout": "2s",
    "wal_retrieve_retry_interval": "200ms",
}
"""How every server of a pair is set."""
ACCESS = (
    "local all,replication all trust",
    "host all,replication all all trust",
)


@dataclass(frozen=True)
class Place:
    """Where the programs of a host run: its network, their logs, and a folder of their user's."""

    host: Host
    folder: Path
    logs: Path
    as_user: Callable[[Sequence[str]], list[str]]
    """Makes a command run as that user."""

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs a program there."""
        return self.host.command(self.as_user(argv))


class Server:
    """One server, whoever started it: what it is asked."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.host = place.host
        self.name = place.host.name

    @property
    def runs(self) -> bool:
        """Whether anything listens on its socket."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(1)
            try:
                asked.connect(str(self.place.folder / f".s.PGSQL.{PORT}"))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except OSError:
                pass  # it is there, and busy
        return True

    @property
    def is_primary(self) -> bool:
        """Whether it runs and takes itself for the primary; waits while it starts or stops."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self.runs:
            try:
                return self.ask("select pg_is_in_recovery()") is False
            except NetworkError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        return False

    def ask(self, statement: str) -> Any:
        """The first column of the first row that a statement returns, or None."""
        address = f"host={self.place.folder} port={PORT} user=postgres dbname=postgres"
        try:
            with psycopg.connect(address, autocommit=True, connect_timeout=5) as connection:
                cursor = connection.execute(statement.encode())
                row = cursor.fetchone() if cursor.description else None
        except psycopg.Error as error:
            raise NetworkError(f"{self.name}: {error}") from None
        return row[0] if row else None

    def await_standby(
        self,
        standby: "Server",
        timeout_seconds: float = WAIT_SECONDS,
        *,
        synchronous: bool = False,
    ) -> None:
        """Wait until `standby` streams from this node and has everything that it had just now; with
        `synchronous`, until this node waits for it, too. Raises NetworkError."""
        position = self.ask("select pg_current_wal_lsn()")
        caught_up = (
            "select count(*) from pg_stat_replication where state = 'streaming' "
            f"and application_name = '{standby.name}' and replay_lsn >= '{position}'"
        )
        if synchronous:
            caught_up += " and sync_state = 'sync'"
        if not await_condition(lambda: self.ask(caught_up) == 1, timeout_seconds):
            raise NetworkError(f"{standby.name} does not catch up with {self.name}")

    def rows(self) -> dict[str, set[int]]:
        """The numbers in the ledger, by writer."""
        text = self.ask(
            "select coalesce(json_object_agg(writer, numbers), '{}') from "
            "(select writer, json_agg(number) as numbers from recovery_ledger group by writer) x"
        )
        return {writer: set(numbers) for writer, numbers in text.items()}


class Node(Server):
    """One that we start, stop and promote ourselves."""

    def __init__(self, place: Place, tool: Callable[[str], str]) -> None:
        """`tool` finds a program of PostgreSQL."""
        super().__init__(place)
        self._data = place.folder / "data"
        self._log = place.logs / f"{self.name}.log"
        self._tool = tool
        self._process: subprocess.Popen[bytes] | None = None

    # --- making -------------------------------------------------------------------------

    def create(self) -> None:
        """A new, empty database."""
        options = ("-U", "postgres", "-A", "trust", "-k", "-N", "-E", "UTF8", "--wal-segsize=1")
        self._run("initdb", "-D", str(self._data), *options)
        self._run_as_user("tee", str(self._data / "pg_hba.conf"), stdin="\n".join(ACCESS) + "\n")

    def copy_from(self, source: "Node") -> None:
        """A base backup of a running node, over the network."""
        where = ("-h", source.host.address, "-p", str(PORT), "-U", "postgres")
        self._run("pg_basebackup", "-D", str(self._data), "-X", "stream", "-c", "fast", *where)

    # --- running ------------------------------------------------------------------------

    def start(self, *, follow: "Node | None" = None, synchronous: "Node | None" = None) -> None:
        """Start as primary, or as the standby of `follow`; returns when it answers.

        A primary acknowledges nothing that `synchronous` does not hold as well.
        """
        self._configure(follow, synchronous)
        signal_file = str(self._data / "standby.signal")
        self._run_as_user(*(("touch", signal_file) if follow else ("rm", "-f", signal_file)))
        command = [self._tool("postgres"), "-D", str(self._data)]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self.place.command(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if not await_condition(self._is_ours_and_answers, WAIT_SECONDS):
            said = self._log.read_text(errors="replace").strip()[-1000:]
            raise NetworkError(f"the database on {self.name} does not answer: {said}")

    def demand_synchronous(self, standby: "Node | None") -> None:
        """From now on acknowledge only what `standby` holds as well; None: nothing is waited
        for."""
        self._configure(None, standby)
        self.ask("select pg_reload_conf()")
        wanted = standby.name if standby else ""
        if not await_condition(
            lambda: self.ask("show synchronous_standby_names") == wanted, WAIT_SECONDS
        ):
            raise NetworkError(f"{self.name} does not take its new configuration")

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, mode: str) -> None:
        """`fast`: cleanly, with everything sent to the standbys. `immediate`: as if it crashed.
        Returns when its last process is gone."""
        if self._process and self.runs:
            self._run("pg_ctl", "stop", "-D", str(self._data), "-m", mode, "-w", "-t", "20")
            self._process.wait(timeout=WAIT_SECONDS)

    def promote(self) -> None:
        """Make a standby the primary; returns when it is one."""
        if not self.ask("select pg_promote(true, 20)"):
            raise NetworkError(f"{self.name} was not promoted within 20 s")

    def rewind(self, source: "Node") -> None:
        """Throw away what a stopped, former primary has and `source` has not."""
        # Until the promotion's checkpoint is done, pg_rewind sees no divergence where there is one.
        source.ask("checkpoint")
        server = f"host={source.host.address} port={PORT} user=postgres dbname=postgres"
        self._run("pg_rewind", "-D", str(self._data), f"--source-server={server}")

    def _is_ours_and_answers(self) -> bool:
        """Another server in this place would make everything that follows a lie."""
        if not self.runs:
            raise NetworkError(
                f"the database on {self.name} ended: "
                + self._log.read_text(errors="replace").strip()[-1000:]
            )
        try:
            return bool(self.ask("show data_directory") == str(self._data))
        except NetworkError:
            return False

    def _configure(self, follow: "Node | None", synchronous: "Node | None") -> None:
        """The whole of postgresql.auto.conf: pg_rewind copies that of another node."""
        settings = SETTINGS | {
            "listen_addresses": "*",
            "port": str(PORT),
            "unix_socket_directories": str(self.place.folder),
            "synchronous_standby_names": synchronous.name if synchronous else "",
        }
        if follow:
            words = f"user=postgres application_name={self.name} connect_timeout=2"
            settings["primary_conninfo"] = f"host={follow.host.address} port={PORT} {words}"
        text = "".join(f"{key} = '{value}'\n" for key, value in settings.items())
        self._run_as_user("tee", str(self._data / "postgresql.auto.conf"), stdin=text)

    def _run(self, program: str, *words: str) -> None:
        self._run_as_user(self._tool(program), *words)

    def _run_as_user(self, *argv: str, stdin: str = "") -> None:
        began = time.monotonic()
        done = run_tool(
            self.place.command(argv),
            cwd=self.place.folder,
            stdin=stdin.encode(),
            timeout_seconds=60,
        )
        with self._log.open("ab") as log:
            log.write(done.stderr)
        if done.returncode:
            took = time.monotonic() - began
            raise NetworkError(
                f"{argv[0]} on {self.name} failed after {took:.1f} s: {done.complaint}"
            )
