"""One service of a stack, ready to be started in a machine.

Read by the machine's own processes, so it imports nothing that is slow to import.
"""

import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOM = Path("/mnt")
"""Where a machine sees its volume (`ROOM/volume`) and whatever else it is given."""
VOLUME = ROOM / "volume"
VOLUME_BYTES = 640_000_000
"""Size of a volume that is one of its own; what is free in it takes no space."""


@dataclass(frozen=True)
class Health:
    """How a service is probed. `kind` is http (`detail`: path), tcp, sql (`detail`: statement) or
    redis (a SET, because PING does not see a server that refuses writes)."""

    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Service:
    """One service, ready to be started in a machine."""

    name: str
    kind: str
    """postgres, redis, application, or command."""
    command: tuple[str, ...]
    port: int
    health: Health
    user: str = ""
    """Whom it runs as where the machine belongs to root; empty: as the machine itself."""
    depends_on: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    """Run once, as the same user, while the service's data directory is empty."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The service's own directory on the volume."""
        return VOLUME / self.name


def in_order(services: Sequence[Service]) -> list[Service]:
    """Dependencies first."""
    by_name = {service.name: service for service in services}
    graph = {service.name: service.depends_on for service in services}
    return [by_name[name] for name in graphlib.TopologicalSorter(graph).static_order()]
