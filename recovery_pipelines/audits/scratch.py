"""A PostgreSQL server of our own for restored data, in a machine that has no network."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.services.host import Machine
from recovery_pipelines.services.service import ROOM, VOLUME
from recovery_pipelines.tools import Finished, existing_user

_PORT = "5432"
_LOOK_SECONDS = 0.1
MEMORY = ROOM / "memory"
"""For secrets and logs; never on a disk."""
_SETTINGS = {
    "hba_file": f"{MEMORY}/hba.conf",
    "ident_file": "/dev/null",
    "listen_addresses": "127.0.0.1",
    "port": _PORT,
    "unix_socket_directories": "",
    "external_pid_file": "",
    "archive_mode": "off",
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    "hot_standby": "off",  # else the settings of the team's server would have to be known
    "max_prepared_transactions": "1000",
    "shared_buffers": "64MB",
    "huge_pages": "off",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "ssl": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "timezone": "UTC",
}
"""Stronger than whatever a restored cluster brings along."""


class ScratchServer:
    """The server and its machine. As a context manager both are ended."""

    data = VOLUME / "data"
    work = VOLUME / "work"
    """For files on their way into the server."""

    def __init__(
        self,
        sandbox: Sandbox,
        user: str,
        remaining_seconds: Callable[[], float],
        read_only: Mapping[str, Path],
    ) -> None:
        """A machine with an empty volume; `read_only` folders are seen as `ROOM/<name>`.

        `user`: whom the server runs as where we are root.
        """
        self._remaining_seconds = remaining_seconds
        self.user = user
        self.machine = Machine(
            sandbox,
            "scratch",
            (),
            sandbox.tree("logs").path,
            read_only=read_only,
            new_volume=True,
            distrusted=True,
        )
        self._volume = sandbox.tree("machine-scratch").path / "volume"
        owner = ["-o", user] if os.geteuid() == 0 else []
        made = self.run("install", "-d", "-m", "700", *owner, self.data, self.work, MEMORY, user="")
        assert made.returncode == 0, made.complaint
        self.write("hba.conf", "host all all 127.0.0.1/32 trust\n")
        self.write("postgresql.conf", "")

    def run(self, *argv: str | Path, user: str | None = None, stdin: str = "") -> Finished:
        """Run a program inside as the server's user, to its end."""
        return self.machine.run(
            argv,
            user=self.user if user is None else user,
            stdin=stdin,
            timeout_seconds=self._remaining_seconds(),
        )

    def write(self, name: str, text: str) -> Path:
        """A file that only the server's user can read, and that is on no disk."""
        path = MEMORY / name
        done = self.run("sh", "-c", 'umask 077; cat > "$0"', path, stdin=text)
        assert done.returncode == 0, done.complaint
        return path

    def take(self, name: str, source: Path) -> Path:
        """A copy of a file or folder in `work`, for the server's user."""
        copy = self.outside(self.work / name)
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            shutil.copyfile(source, copy)
        if os.geteuid() == 0:
            for path in (copy, *copy.rglob("*")):
                shutil.chown(path, self.user)
        return self.work / name

    def outside(self, path: Path) -> Path:
        """Where something on the machine's volume lies for us."""
        return self._volume / path.relative_to(VOLUME)

    def start(self, programs: Path) -> Finished:
        """Start it and wait until recovery is done; of a failure, `stderr` is the server's own."""
        log = MEMORY / "server.log"
        settings = _SETTINGS | {"config_file": f"{MEMORY}/postgresql.conf"}
        options = " ".join(f"-c {key}='{value}'" for key, value in settings.items())
        control = (programs / "pg_ctl", "-D", self.data, "-w")
        seconds = str(max(1, int(self._remaining_seconds())))
        done = self.run(*control, "-t", seconds, "-l", log, "-o", options, "start")
        ask = ("-X", "-q", "-o", "/dev/null", "-d", "template1", "-c", "select 1")
        while done.returncode == 0 and self.client(programs / "psql", *ask).returncode:
            time.sleep(_LOOK_SECONDS)  # it answers when it is through with its WAL
            done = self.run(*control, "status")
        if done.returncode == 0:
            return done
        said = self.run("tail", "-n", "60", log).stdout
        fatal = [line for line in said.splitlines() if b"FATAL" in line or b"PANIC" in line]
        mattering = [line for line in fatal if b"not accepting connections" not in line]
        return Finished(done.returncode, b"", b"\n".join(mattering[-3:]) or done.stderr)

    def client(self, program: Path, *arguments: str | Path) -> Finished:
        """One of PostgreSQL's own clients, as the superuser."""
        return self.run(program, "-h", "127.0.0.1", "-p", _PORT, "-U", "postgres", *arguments)

    def ask(self, database: str, **questions: Any) -> dict[str, Any]:
        """See `questions`. An `error` among the answers says that it could not be asked."""
        done = self.run(
            *(sys.executable, "-m", "recovery_pipelines.audits.questions"),
            user="",
            stdin=json.dumps({"port": _PORT, "database": database, **questions}),
        )
        if done.returncode:
            return {"error": done.complaint.splitlines()[-1] if done.complaint else "no answer"}
        answers: dict[str, Any] = json.loads(done.stdout)
        return answers

    def __enter__(self) -> "ScratchServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.end()


def owner_of(folder: Path) -> str:
    """Whom a server runs as that must read `folder`, where we are root."""
    try:
        owner = folder.owner()
    except KeyError:
        owner = "root"
    return existing_user("postgres", "nobody") if owner == "root" else owner
