"""What a collector yields, and how counters become rates."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from recovery_pipelines.monitoring.sketch import Sketch


class Sample(NamedTuple):
    """One value of one metric. None is missing: the machine cannot tell. It is never zero."""

    metric: str
    entity: str
    """The device, mount, interface, service or check; empty for the whole host."""
    value: float | None
    sketch: Sketch | None = None
    """The whole distribution, where `value` is only its mean."""


State = Literal["ok", "failed", "unknown"]


@dataclass(frozen=True)
class Outcome:
    """What one health check found. `unknown`: it could not be checked, which is not health."""

    name: str
    state: State
    detail: str
    seconds: float | None = None


class Collector(Protocol):
    """One section of the monitoring."""

    def collect(self) -> tuple[list[Sample], list[Outcome]]:
        """Measure once."""


class Counters:
    """Counters that only grow, between two looks at each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Hashable, tuple[float, float]] = {}

    def increase(self, key: Hashable, value: float | None) -> tuple[float, float] | None:
        """By how much, and in how many seconds; None at the first look and after a gap.

        A counter that is smaller than before was reset: what it shows has been counted since.
        """
        now = self._clock()
        before = self._seen.pop(key, None)
        if value is None:
            return None
        self._seen[key] = (now, value)
        if before is None or now <= before[0]:
            return None
        grown = value - before[1]
        return (grown if grown >= 0 else value), now - before[0]

    def rate(self, key: Hashable, value: float | None) -> float | None:
        """Increase per second."""
        increase = self.increase(key, value)
        return increase and increase[0] / increase[1]
