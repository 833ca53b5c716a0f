"""Failover by Patroni: a member of etcd on both nodes and on the witness, Patroni on the nodes.

It notices, fences, promotes and rejoins by itself. The drill cuts and watches, and asks for the
switchover that hands back.
"""

import base64
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from recovery_pipelines.errors import MissingCapability, NetworkError
from recovery_pipelines.network.database import ACCESS, PORT, SETTINGS, Place, Server
from recovery_pipelines.network.measure import await_condition
from recovery_pipelines.network.pair import Failover, Pair
from recovery_pipelines.network.vantage import VantagePoint
from recovery_pipelines.tools import find_tool, run_tool

_TIMEOUTS = {"ttl": 20, "loop_wait": 1, "retry_timeout": 3}
"""In seconds, the shortest that Patroni accepts: others take over once the lease (`ttl`) is out."""
_CLIENTS_PORT, _PEERS_PORT, _API_PORT = 2379, 2380, 8008
_SCOPE = "drill"
_KEYS = f"/recovery/{_SCOPE}"
_PATIENCE_SECONDS = 40.0
_LOOK_SECONDS = 1.0
_SWITCHOVER_SECONDS = 15.0
_LOOK_EVERY_SECONDS = 0.02
_OWN_PROCESSES = ("--pid", "--fork", "--kill-child=KILL", "--mount-proc")
"""Patroni is the first of them, as in a container: it reaps what PostgreSQL leaves behind."""


@dataclass(frozen=True)
class Programs:
    """Where the programs are."""

    patroni: str
    etcd: str
    postgres: Path
    """The folder of PostgreSQL's."""


class PatroniPair(Pair):
    """A pair that Patroni keeps."""

    def __init__(
        self,
        primary: Place,
        standby: Place,
        witness: Place,
        programs: Programs,
        *,
        synchronous: bool,
    ) -> None:
        """Raises MissingCapability if the databases' user cannot run Patroni."""
        super().__init__(synchronous=synchronous)
        self.primary, self.standby = Server(primary), Server(standby)
        self._witness = witness
        self._programs = programs
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []
        done = run_tool(primary.as_user([programs.patroni, "--version"]), timeout_seconds=60)
        if done.returncode:
            raise MissingCapability(
                f"{programs.patroni} cannot be run by the user of the databases, who needs a "
                f"Python that others may read (/usr/bin/python3 -m venv): {done.complaint}"
            )
        self.managed_by = done.stdout.decode().strip()

    def build(self, *statements: str) -> None:
        members = [self.primary.place, self.standby.place, self._witness]
        for member in members:
            self._start(member, "etcd", self._etcd(member, members))
        self._await(lambda: self._held("leader") == "", "etcd does not answer")
        self._start_patroni(self.primary)
        self._await(lambda: self._leads(self.primary), "Patroni makes no primary")
        for statement in statements:
            self.primary.ask(statement)
        self._start_patroni(self.standby)
        self._await(lambda: self._follows(*self.servers), "the standby does not follow")

    def fail_over(
        self, points: Sequence[VantagePoint], *, fence: bool, patience: float
    ) -> Failover:
        """Watch Patroni do it. Declared: the primary's lease is out in the eyes of the others'
        etcd. Fenced: the primary no longer takes itself for one."""
        done = threading.Event()
        fenced_at: list[float] = []

        def watch() -> None:
            while not done.wait(_LOOK_EVERY_SECONDS):
                with suppress(NetworkError):
                    if not self.primary.is_primary:
                        fenced_at.append(time.monotonic())
                        return

        threading.Thread(target=watch, daemon=True).start()
        declared_at = promoted_at = None
        deadline = time.monotonic() + patience
        while promoted_at is None and time.monotonic() < deadline:
            if declared_at is None and self._held("leader") not in (None, "primary"):
                declared_at = time.monotonic()
            if self.standby.is_primary:
                promoted_at = time.monotonic()
            time.sleep(_LOOK_EVERY_SECONDS)
        done.set()
        return Failover(declared_at or promoted_at, next(iter(fenced_at), None), promoted_at)

    def rejoin(self) -> None:
        pairs = (self.servers, self.servers[::-1])
        self._await(lambda: any(self._follows(*pair) for pair in pairs), "nobody follows")

    def fail_back(self) -> None:
        said = ""

        def handed_over() -> bool:
            nonlocal said
            if not self._leads(self.primary):
                who = {"leader": self.standby.name, "candidate": self.primary.name}
                said = self._post(self.standby.place, _API_PORT, "/switchover", who) or "no answer"
            return await_condition(lambda: self._leads(self.primary), _LOOK_SECONDS)

        try:
            self._await(handed_over, "Patroni does not switch over to the primary")
        except NetworkError as error:
            raise NetworkError(f"{error}; it answered: {said}") from None
        self._await(lambda: self._follows(*self.servers), "the standby does not follow")

    # --- etcd and Patroni ---------------------------------------------------------------

    def _held(self, key: str) -> str | None:
        """What etcd holds under a key of Patroni's: empty if nothing, None if most of etcd cannot
        be asked."""
        name = base64.b64encode(f"{_KEYS}/{key}".encode()).decode()
        said = self._post(self._witness, _CLIENTS_PORT, "/v3/kv/range", {"key": name})
        with suppress(ValueError):
            found = json.loads(said)
            if "header" in found:
                values = [base64.b64decode(row.get("value", "")) for row in found.get("kvs", ())]
                return values[0].decode() if values else ""
        return None

    def _leads(self, server: Server) -> bool:
        return self._held("leader") == server.name and server.is_primary

    def _follows(self, leader: Server, other: Server) -> bool:
        """Whether it replicates, and Patroni knows that it may be promoted."""
        with suppress(NetworkError):  # Patroni may be about to restart one of them
            leader.await_standby(other, _LOOK_SECONDS, synchronous=self.synchronous)
            known = f'"sync_standby":"{other.name}"' in (self._held("sync") or "")
            return known or not self.synchronous
        return False

    def _post(self, to: Place, port: int, path: str, body: Mapping[str, str]) -> str:
        """Ask from the witness; empty if there is no answer."""

        def ask() -> str:
            timeout = _SWITCHOVER_SECONDS if port == _API_PORT else _LOOK_SECONDS
            connection = HTTPConnection(to.host.address, port, timeout=timeout)
            try:
                connection.request("POST", path, json.dumps(body))
                return connection.getresponse().read().decode(errors="replace")
            except (OSError, HTTPException):
                return ""
            finally:
                connection.close()

        return self._witness.host.call(ask)

    def _etcd(self, own: Place, members: Sequence[Place]) -> list[str]:
        def url(place: Place, port: int) -> str:
            return f"http://{place.host.address}:{port}"

        peers = ",".join(f"{place.host.name}={url(place, _PEERS_PORT)}" for place in members)
        options = {
            "name": own.host.name,
            "data-dir": str(own.folder / "etcd"),
            "listen-client-urls": url(own, _CLIENTS_PORT),
            "advertise-client-urls": url(own, _CLIENTS_PORT),
            "listen-peer-urls": url(own, _PEERS_PORT),
            "initial-advertise-peer-urls": url(own, _PEERS_PORT),
            "initial-cluster": peers,
            "pre-vote": "true",  # else who was cut off unseats the leader when it is back
        }
        return own.command([self._programs.etcd, *(f"--{k}={v}" for k, v in options.items())])

    def _start_patroni(self, server: Server) -> None:
        place = server.place
        file = place.folder / "patroni.json"
        file.write_text(json.dumps(self._configuration(place)))
        file.chmod(0o644)
        patroni = place.as_user([self._programs.patroni, str(file)])
        unshare = find_tool("unshare", "util-linux")
        command = place.host.command([unshare, *_OWN_PROCESSES, "--", *patroni])
        self._start(place, "patroni", command)

    def _configuration(self, place: Place) -> dict[str, Any]:
        address = place.host.address
        user = {"username": "postgres"}
        hosts = (self.primary.host, self.standby.host, self._witness.host)
        return {
            "scope": _SCOPE,
            "namespace": str(Path(_KEYS).parent),
            "name": place.host.name,
            "restapi": {"listen": f"{address}:{_API_PORT}"},
            "etcd3": {"hosts": [f"{host.address}:{_CLIENTS_PORT}" for host in hosts]},
            "bootstrap": {
                "dcs": {
                    **_TIMEOUTS,
                    "synchronous_mode": self.synchronous,
                    "postgresql": {"use_pg_rewind": True, "parameters": SETTINGS},
                },
                "initdb": ["data-checksums", "no-sync", {"encoding": "UTF8"}, {"wal-segsize": "1"}],
            },
            "postgresql": {
                "listen": f"0.0.0.0:{PORT}",
                "connect_address": f"{address}:{PORT}",
                "data_dir": str(place.folder / "data"),
                "bin_dir": str(self._programs.postgres),
                "pgpass": str(place.folder / "pgpass"),
                "pg_hba": list(ACCESS),
                "authentication": {"superuser": user, "replication": user, "rewind": user},
                "parameters": {"unix_socket_directories": str(place.folder)},
                "use_unix_socket": True,
                "use_unix_socket_repl": True,
                "basebackup": [{"checkpoint": "fast"}],
            },
        }

    def _start(self, place: Place, name: str, command: Sequence[str]) -> None:
        """Without this process's environment: both programs take settings from it."""
        log = place.logs / f"{place.host.name}-{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=place.folder,
                env={"PATH": os.environ["PATH"], "HOME": str(place.folder), "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._running.append((process, log))

    def _await(self, condition: Callable[[], bool], otherwise: str) -> None:
        def come_true() -> bool:
            for process, log in self._running:
                if process.poll() is not None:
                    raise NetworkError(f"{otherwise}: {log.stem} ended: {_last_words(log)}")
            return condition()

        if not await_condition(come_true, _PATIENCE_SECONDS):
            raise NetworkError(f"{otherwise}: {self._said()}")

    def _said(self) -> str:
        """The end of Patroni's logs; of etcd's before there are any."""
        logs = [log for _, log in self._running]
        said = [log for log in logs if "patroni" in log.name] or logs
        return "; ".join(f"{log.stem}: {_last_words(log)}" for log in said)


def _last_words(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-300:]
