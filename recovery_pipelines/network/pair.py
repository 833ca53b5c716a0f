"""A replicating pair, whoever sees to its failover."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from recovery_pipelines.network.database import Server
from recovery_pipelines.network.vantage import VantagePoint


@dataclass(frozen=True)
class Failover:
    """When the standby took over. Times are monotonic; None: it did not happen."""

    declared_at: float | None = None
    fenced_at: float | None = None
    promoted_at: float | None = None


class Pair(ABC):
    """A primary and its standby. What cannot be done raises NetworkError."""

    primary: Server
    standby: Server
    managed_by: str = ""
    """The program and version that sees to the failover, if we do not."""

    def __init__(self, *, synchronous: bool) -> None:
        """With `synchronous`, a primary acknowledges nothing that its standby lacks."""
        self.synchronous = synchronous

    @property
    def servers(self) -> tuple[Server, Server]:
        return self.primary, self.standby

    @abstractmethod
    def build(self, *statements: str) -> None:
        """Make the databases, run `statements` in them, and wait until they replicate."""

    @abstractmethod
    def fail_over(
        self, points: Sequence[VantagePoint], *, fence: bool, patience: float
    ) -> Failover:
        """See to it, or see, that the standby takes over within `patience` seconds."""

    @abstractmethod
    def rejoin(self) -> None:
        """The former primary becomes the standby of the node that took over."""

    @abstractmethod
    def fail_back(self) -> None:
        """Hand over to the former primary without loss; the other becomes its standby again."""
