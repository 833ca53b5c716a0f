"""The laboratory: a process with namespaces of its own that holds the hosts, the databases and
the clients of one drill.

`outside.Laboratory` starts it and speaks to it.
"""

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from pwd import getpwnam
from typing import Any

import psycopg

from recovery_pipelines.errors import NetworkError, RecoveryError
from recovery_pipelines.namespaces import answer, as_user, first_words, mount, refuse, requests
from recovery_pipelines.network import measure
from recovery_pipelines.network.database import PORT, Place
from recovery_pipelines.network.failover import OwnPair
from recovery_pipelines.network.hosts import build_network, cut, heal
from recovery_pipelines.network.pair import Pair
from recovery_pipelines.network.patroni import PatroniPair, Programs
from recovery_pipelines.network.vantage import VantagePoint
from recovery_pipelines.network.writers import TABLE, Writer, client_address

ROOM = Path("/mnt")
"""A tmpfs of the laboratory's own: the databases leave nothing on the machine's disk."""
HOSTS = ("primary", "standby", "witness", "client")
_ROOM_BYTES = 1_000_000_000
_ECHOES = 60
_ECHO_INTERVAL_SECONDS = 0.005
_ANSWER_SECONDS = 0.3
_TRANSFER_BYTES = 500_000
_TRANSFERS = 3
_TRANSFER_TIMEOUT_SECONDS = 1.0
_CLIENT_PATIENCE_SECONDS = 10.0


class _Laboratory:
    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told
        self._logs = Path(told["logs"])
        for where, mode in ((ROOM, "755"), (Path("/dev/shm"), "1777")):
            mount("-t", "tmpfs", "-o", f"mode={mode},size={_ROOM_BYTES}", "tmpfs", str(where))
        self.hosts = build_network(HOSTS)
        self.pair = self._pair()
        self.primary, self.standby = self.pair.servers
        self.points: list[VantagePoint] = []
        self.writers: list[Writer] = []

    def _pair(self) -> Pair:
        primary, standby = self._place("primary"), self._place("standby")
        tools, synchronous = Path(self._told["postgres_tools"]), bool(self._told["synchronous"])
        if not self._told["patroni"]:
            return OwnPair(primary, standby, lambda t: str(tools / t), synchronous=synchronous)
        programs = Programs(self._told["patroni"], self._told["etcd"], tools)
        witness = self._place("witness")
        return PatroniPair(primary, standby, witness, programs, synchronous=synchronous)

    def _place(self, name: str) -> Place:
        folder = ROOM / name
        folder.mkdir(mode=0o700)
        if not self._told["ordinary_user"]:
            user = getpwnam(self._told["user"])
            os.chown(folder, user.pw_uid, user.pw_gid)
        return Place(self.hosts[name], folder, self._logs, self._as_user)

    def _as_user(self, command: Sequence[str]) -> list[str]:
        ordinary_user = self._told["ordinary_user"]
        return as_user(self._told["user"], command, ordinary_user=ordinary_user)

    # --- what can be asked for ----------------------------------------------------------

    def do_build(self) -> dict[str, Any]:
        """The replicating pair and the clients."""
        self.pair.build(TABLE)
        for host in self.hosts.values():
            host.start(measure.serve_sink, "sink")
        nodes = (self.primary.host, self.standby.host)
        self.writers = [
            Writer("client", self.hosts["client"], nodes),
            Writer("beside_primary", self.hosts["primary"], nodes),
        ]
        for writer in self.writers:
            self._await_write(writer, "primary", time.monotonic())
        return {"managed_by": self.pair.managed_by}

    def do_watch(self, points: list[str], least_bits_per_second: float) -> dict[str, Any]:
        """Start looking at the primary; returns when every vantage point has found it well."""
        self.points = [
            VantagePoint(self.hosts[name], self.primary.host, least_bits_per_second)
            for name in points
        ]
        if not measure.await_condition(
            lambda: all(any(not seen.why for seen in p.observations) for p in self.points), 10
        ):
            raise NetworkError("the network is not well before the failure: nothing can be tested")
        return {}

    def do_measure(self, paths: list[str], transfers: int = _TRANSFERS) -> dict[str, Any]:
        """How well hosts are joined (`client → primary`): one row each with `path`, `accessible`,
        `loss`, `latency_seconds`, `bits_per_second`."""
        return {"paths": [self._path(path, transfers) for path in paths]}

    def _path(self, path: str, transfers: int) -> dict[str, Any]:
        source, destination = path.split(" → ")
        host, address = self.hosts[source], self.hosts[destination].address
        echoes = host.call(
            lambda: measure.ping(address, _ECHOES, _ECHO_INTERVAL_SECONDS, _ANSWER_SECONDS)
        )
        rates = [0.0]
        if echoes.received:
            rates = [
                host.call(
                    lambda: measure.bandwidth(address, _TRANSFER_BYTES, _TRANSFER_TIMEOUT_SECONDS)
                )
                for _ in range(transfers)
            ]
        return {
            "path": path,
            "accessible": host.call(lambda: measure.answers(address, PORT, _ANSWER_SECONDS)),
            "loss": echoes.loss,
            "latency_seconds": echoes.latency_seconds,
            "bits_per_second": max(rates),  # the machine's load only ever slows a transfer
        }

    def do_cut(self, kind: str) -> dict[str, Any]:
        others = (self.hosts["standby"], self.hosts["witness"])
        began = time.monotonic()
        cut(kind, self.hosts["primary"], others)
        return {"began": began, "ended": time.monotonic()}

    def do_fail_over(self, fence: bool, patience: float) -> dict[str, Any]:
        done = self.pair.fail_over(self.points, fence=fence, patience=patience)
        for point in self.points:
            point.stop()
        return asdict(done) | {
            "observations": [
                {"vantage_point": point.name, **asdict(seen)}
                for point in self.points
                for seen in point.observations
            ]
        }

    def do_services(self, since: float) -> dict[str, Any]:
        """Who is the primary, in its own eyes; and, for each client, the node that acknowledged
        it after `since` (waits for one)."""
        served = {}
        deadline = time.monotonic() + _CLIENT_PATIENCE_SECONDS
        for writer in self.writers[:1]:
            while writer.acknowledged[-1].at <= since and time.monotonic() < deadline:
                time.sleep(0.02)
            latest = writer.acknowledged[-1]
            served[writer.name] = latest.node if latest.at > since else None
        primaries = [node.name for node in self.pair.servers if node.is_primary]
        return {"served": served, "primaries": primaries}

    def do_heal(self) -> dict[str, Any]:
        heal(self.hosts["primary"])
        healed = measure.await_condition(
            lambda: self.hosts["standby"].call(
                lambda: measure.ping(self.primary.host.address, 5, 0.01, 0.2).received == 5
            ),
            10,
        )
        return {"healed": healed}

    def do_rejoin(self) -> dict[str, Any]:
        """The former primary becomes the standby of the node that took over."""
        self.pair.rejoin()
        return {}

    def do_fail_back(self) -> dict[str, Any]:
        """Hand over to the former primary without loss; the other becomes its standby again."""
        began = time.monotonic()
        self.pair.fail_back()
        for writer in self.writers:
            self._await_write(writer, "primary", began)
        return {}

    def do_finish(self) -> dict[str, Any]:
        """Stop the clients; what they were told, what the nodes are and hold. A node that cannot be
        read is missing in `held`."""
        for writer in self.writers:
            writer.stop()
        follows = False
        with suppress(NetworkError):
            self.primary.await_standby(self.standby, synchronous=self.pair.synchronous)
            follows = True
        held: dict[str, dict[str, list[int]]] = {}
        for node in self.pair.servers:
            with suppress(NetworkError):
                held[node.name] = {name: sorted(rows) for name, rows in node.rows().items()}
        return {
            "acknowledged": [asdict(a) for writer in self.writers for a in writer.acknowledged],
            "held": held,
            "primaries": [node.name for node in self.pair.servers if node.is_primary],
            "standby_follows": follows,
            "errors": {writer.name: writer.errors for writer in self.writers},
        }

    def do_write_once(self, source: str) -> dict[str, Any]:
        """Write one row from a host to whichever node takes it in time; names the node."""
        nodes = {node.host.address: node.name for node in self.pair.servers}
        address = client_address([node.host for node in self.pair.servers])

        answers: list[dict[str, Any]] = []

        def write() -> None:
            try:
                with psycopg.connect(address, autocommit=True) as connection:
                    connection.execute(
                        "insert into recovery_ledger values (%s, 1)", (f"once from {source}",)
                    )
                    answers.append({"node": nodes[connection.info.host]})
            except psycopg.Error as error:
                answers.append({"node": None, "why": str(error)})

        # A primary that waits for its standby does not answer.
        self.hosts[source].start(write, "write").join(_CLIENT_PATIENCE_SECONDS)
        return answers[0] if answers else {"node": None, "why": "no answer"}

    def _await_write(self, writer: Writer, node: str, since: float) -> None:
        def served() -> bool:
            known = writer.acknowledged[-1:]
            return bool(known) and known[0].node == node and known[0].at > since

        if not measure.await_condition(served, _CLIENT_PATIENCE_SECONDS):
            why = writer.errors[-1:] or "it was not answered"
            raise NetworkError(f"{writer.name} cannot write to {node}: {why}")


def _serve() -> None:
    laboratory = _Laboratory(first_words())
    asked = requests()
    answer({"ready": os.getpid()})
    while True:
        request = asked.get()
        try:
            done = getattr(laboratory, f"do_{request.pop('do')}")(**request)
        except (RecoveryError, OSError, subprocess.SubprocessError) as error:
            done = {"error": f"{error}"}
        answer(done)


if __name__ == "__main__":
    try:
        _serve()
    except RecoveryError as error:
        refuse(error)
