"""The collector process: one thread per section, each at its own interval.

A section is measured at the multiples of its interval since 1970, so that restarts neither double
nor shift the time stamps. A look that takes longer than its interval skips the times it missed:
they are a gap, never a queue. `python -m recovery_pipelines.monitoring.collector HOME` runs it.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.monitoring.application import ApplicationCollector
from recovery_pipelines.monitoring.dependencies import DependencyCollector
from recovery_pipelines.monitoring.health import HealthCollector
from recovery_pipelines.monitoring.sample import Collector
from recovery_pipelines.monitoring.service import ServiceCollector
from recovery_pipelines.monitoring.store import Tick, Writer, connect
from recovery_pipelines.monitoring.supervise import hold_lock, is_wanted, read_settings
from recovery_pipelines.monitoring.system import SystemCollector
from recovery_pipelines.plan.monitoring import SECTIONS, Monitoring
from recovery_pipelines.secrecy import forbid_core_files

log = logging.getLogger("recovery_pipelines")

CLOCK_JUMP_SECONDS = 2.0
_LEASE_LOOK_SECONDS = 5.0


def collectors(monitoring: Monitoring) -> dict[str, Callable[[], Collector]]:
    """What measures each section."""
    metrics, services = monitoring.metrics_collection, monitoring.services
    return {
        "system_metrics": lambda: SystemCollector(metrics.system_metrics),
        "service_metrics": lambda: ServiceCollector(services, metrics.service_metrics),
        "application_metrics": lambda: ApplicationCollector(services, metrics.application_metrics),
        "service_checks": lambda: HealthCollector(
            services, monitoring.health_checks.service_checks
        ),
        "dependency_checks": lambda: DependencyCollector(monitoring),
    }


class Section(threading.Thread):
    """Measures one section at its interval, from `start()` until `stop` is set.

    `wanted` says before each look whether somebody still wants it.
    """

    def __init__(
        self,
        home: Path,
        name: str,
        interval_seconds: int,
        make: Callable[[], Collector],
        stop: threading.Event,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._home, self._interval, self._make = home, interval_seconds, make
        self._stop_event, self._wanted = stop, wanted

    def run(self) -> None:
        with connect(self._home) as connection:
            writer = Writer(connection)
            collector = self._make()
            while (due := self._wait(writer)) is not None:
                if not self._wanted():
                    continue
                at, began = time.time(), time.monotonic()
                try:
                    samples, outcomes = collector.collect()
                    took = time.monotonic() - began
                    writer.append(Tick(self.name, due, at, took), samples, outcomes)
                except Exception:
                    # One bad look must not end the monitoring; the gap it leaves is seen.
                    log.exception("%s: this look is lost", self.name)

    def _wait(self, writer: Writer) -> float | None:
        """Sleep until the next time to measure and return it; None if it is time to stop.

        The sleep follows the monotonic clock, so a clock that is set does not stretch it.
        """
        now = time.time()
        due = (now // self._interval + 1) * self._interval
        wake = time.monotonic() + due - now
        if self._stop_event.wait(due - now):
            return None
        jumped = (time.time() - due) - (time.monotonic() - wake)
        if abs(jumped) > CLOCK_JUMP_SECONDS:
            log.warning("the clock was set by %+.1f s", jumped)
            writer.note_clock_jump(time.time(), jumped)
            return self._wait(writer)
        return due


def collect(
    home: Path,
    monitoring: Monitoring,
    sections: Sequence[str],
    stop: threading.Event,
    leased: bool,
) -> None:
    """Measure `sections` until `stop` is set; if `leased`, only as long as sensors want them."""
    makers = collectors(monitoring)
    with connect(home):
        pass  # made once, before the threads need it
    threads = [
        Section(
            home,
            name,
            monitoring.interval_seconds(name),
            makers[name],
            stop,
            partial(is_wanted, home, name) if leased else lambda: True,
        )
        for name in sections
    ]
    for thread in threads:
        thread.start()
    while not stop.wait(_LEASE_LOOK_SECONDS):
        if leased and not any(is_wanted(home, name) for name in sections):
            log.info("no sensor wants anything measured any more")
            stop.set()
    for thread in threads:
        thread.join(timeout=_LEASE_LOOK_SECONDS)


def main(home: Path, *, leased: bool = True) -> int:
    """Run until SIGTERM or SIGINT. Exit code 3: another collector runs on this data home."""
    forbid_core_files()
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    monitoring, digest = read_settings(home)
    with hold_lock(home, digest) as mine:
        if not mine:
            return 3
        collect(home, monitoring, SECTIONS, stop, leased)
    return 0


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    try:
        code = main(Path(sys.argv[1]))
    except RecoveryError as error:
        sys.stderr.write(f"error: {error}\n")
        code = 2
    sys.stdout.flush()
    os._exit(code)  # a check that hangs must not hold the process
