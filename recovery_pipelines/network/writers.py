"""Clients that write numbered rows to whichever node takes them, and log what was acknowledged."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from recovery_pipelines.network.hosts import Host

TABLE = (
    "create table if not exists recovery_ledger "
    "(writer text, number bigint, primary key (writer, number))"
)
_PAUSE_SECONDS = 0.005
_RETRY_SECONDS = 0.05
_OPTIONS = (
    "port=5432 user=postgres dbname=postgres target_session_attrs=read-write connect_timeout=2 "
    "tcp_user_timeout=1500 keepalives_idle=1 keepalives_interval=1 keepalives_count=2"
)


@dataclass(frozen=True)
class Acknowledgement:
    """A row that a node said it keeps."""

    writer: str
    number: int
    node: str
    at: float
    """Monotonic time at which the answer came."""


def client_address(nodes: Sequence[Host]) -> str:
    """A connection string that finds the node that takes writes."""
    return f"host={','.join(node.address for node in nodes)} {_OPTIONS}"


class Writer:
    """Writes from a host until stopped."""

    def __init__(self, name: str, host: Host, nodes: Sequence[Host]) -> None:
        self.name = name
        self.acknowledged: list[Acknowledgement] = []
        self.errors: list[tuple[float, str]] = []
        """When a request or a connection failed, and how."""
        self._names = {node.address: node.name for node in nodes}
        self._address = client_address(nodes)
        self._stopped = threading.Event()
        self._thread = host.start(self._write, name)

    def stop(self) -> None:
        """No acknowledgement counts after this. A request that hangs is left to itself."""
        self._stopped.set()
        self._thread.join(timeout=1.0)

    def _write(self) -> None:
        number = 0
        while not self._stopped.is_set():
            try:
                with psycopg.connect(self._address, autocommit=True) as connection:
                    node = self._names[connection.info.host]
                    while not self._stopped.is_set():
                        number += 1
                        connection.execute(
                            "insert into recovery_ledger values (%s, %s)", (self.name, number)
                        )
                        if not self._stopped.is_set():
                            done = Acknowledgement(self.name, number, node, time.monotonic())
                            self.acknowledged.append(done)
                        self._stopped.wait(_PAUSE_SECONDS)
            except psycopg.Error as error:
                self.errors.append((time.monotonic(), " ".join(str(error).split())[:200]))
                self._stopped.wait(_RETRY_SECONDS)
