"""Failover of our own: two views, a primary stopped out of band, a standby promoted."""

import time
from collections.abc import Callable, Sequence

from recovery_pipelines.network.database import Node, Place
from recovery_pipelines.network.measure import await_condition
from recovery_pipelines.network.pair import Failover, Pair
from recovery_pipelines.network.vantage import VantagePoint


class OwnPair(Pair):
    """A pair that we start, watch, fence and promote."""

    primary: Node
    standby: Node

    def __init__(
        self, primary: Place, standby: Place, tool: Callable[[str], str], *, synchronous: bool
    ) -> None:
        """`tool` finds a program of PostgreSQL."""
        super().__init__(synchronous=synchronous)
        self.primary, self.standby = Node(primary, tool), Node(standby, tool)

    def build(self, *statements: str) -> None:
        self.primary.create()
        self.primary.start()
        for statement in statements:
            self.primary.ask(statement)
        self.standby.copy_from(self.primary)
        self.standby.start(follow=self.primary)
        self._follow(self.primary, self.standby)

    def fail_over(
        self, points: Sequence[VantagePoint], *, fence: bool, patience: float
    ) -> Failover:
        """Promote the standby once every vantage point declares the primary failed; before that, if
        `fence`, stop the primary where it stands, by a way that does not need the network.

        Nothing happens if they do not agree within `patience` seconds: one view alone may be wrong.
        """
        if not await_condition(lambda: all(p.declares_failure for p in points), patience):
            return Failover()
        declared_at = time.monotonic()
        fenced_at = None
        if fence:
            self.primary.stop("immediate")
            fenced_at = time.monotonic()
        self.standby.promote()
        return Failover(declared_at, fenced_at, time.monotonic())

    def rejoin(self) -> None:
        if self.primary.runs:
            self.primary.stop("immediate")  # a second primary has nothing to hand over
        self.primary.rewind(self.standby)
        self.primary.start(follow=self.standby)
        self._follow(self.standby, self.primary)

    def fail_back(self) -> None:
        self.standby.await_standby(self.primary)
        self.standby.stop("fast")
        self.primary.promote()
        self.standby.start(follow=self.primary)
        self._follow(self.primary, self.standby)

    def _follow(self, primary: Node, standby: Node) -> None:
        primary.await_standby(standby)
        if self.synchronous:
            primary.demand_synchronous(standby)
