"""Noticing from several hosts that the primary is cut off."""

import threading
import time
from dataclasses import dataclass

from recovery_pipelines.network import measure
from recovery_pipelines.network.database import PORT
from recovery_pipelines.network.hosts import Host

PROBE_TIMEOUT_SECONDS = 0.5
PROBE_INTERVAL_SECONDS = 0.2
FAILURES_TO_DECLARE = 3
TOLERATED_LOSS = 0.1
_ECHOES = 20
_ECHO_INTERVAL_SECONDS = 0.005
_TRANSFER_BYTES = 250_000


@dataclass(frozen=True)
class Observation:
    """What one look at the primary found; `why` is empty if it was well."""

    at: float
    why: str


class VantagePoint:
    """Looks at the primary from one host until stopped."""

    def __init__(self, host: Host, primary: Host, least_bits_per_second: float) -> None:
        self.name = host.name
        self.observations: list[Observation] = []
        self._primary = primary
        self._least = least_bits_per_second
        self._stopped = threading.Event()
        self._thread = host.start(self._look, "vantage point")

    @property
    def declares_failure(self) -> bool:
        latest = self.observations[-FAILURES_TO_DECLARE:]
        return len(latest) == FAILURES_TO_DECLARE and all(seen.why for seen in latest)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopped.is_set():
            why = self._trouble()
            self.observations.append(Observation(time.monotonic(), why))
            self._stopped.wait(PROBE_INTERVAL_SECONDS)

    def _trouble(self) -> str:
        address = self._primary.address
        if not measure.answers(address, PORT, PROBE_TIMEOUT_SECONDS):
            return f"no connection within {PROBE_TIMEOUT_SECONDS} s"
        seen = measure.ping(address, _ECHOES, _ECHO_INTERVAL_SECONDS, PROBE_TIMEOUT_SECONDS)
        if seen.loss > TOLERATED_LOSS:
            return f"{seen.loss:.0%} of {seen.sent} echoes lost"
        rate = measure.bandwidth(address, _TRANSFER_BYTES, 2 * PROBE_TIMEOUT_SECONDS)
        if rate < self._least:
            return f"{rate / 1e6:.1f} Mbit/s"
        return ""
