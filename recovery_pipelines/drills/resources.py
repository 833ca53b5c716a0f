"""What a drill costs: CPU, memory and I/O of this process and of every tool it started."""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

_SAMPLE_INTERVAL_SECONDS = 0.1


@dataclass(frozen=True)
class ResourceUse:
    """Totals over a drill. I/O is None where the kernel does not tell."""

    cpu_seconds: float
    peak_memory_bytes: int
    """Largest sum of resident memory seen over the process and its children (sampled)."""
    read_operations: int | None
    write_operations: int | None
    read_bytes: int | None
    write_bytes: int | None


class ResourceMeter:
    """Measures from `with` to `use()`: finished children are counted through the kernel's own
    accounting (`times` and `/proc/self/io` include children that were waited for)."""

    def __enter__(self) -> Self:
        self._process = psutil.Process()
        self._peak_bytes = 0
        self._stop = threading.Event()
        self._cpu_before = _cpu_seconds()
        self._io_before = _io_counters(self._process)
        self._sampler = threading.Thread(target=self._sample, name="resource-meter", daemon=True)
        self._sampler.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._sampler.join()

    def use(self) -> ResourceUse:
        before, after = self._io_before, _io_counters(self._process)
        io = [b - a for a, b in zip(before, after, strict=True)] if before and after else [None] * 4
        return ResourceUse(_cpu_seconds() - self._cpu_before, self._peak_bytes, *io)

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_INTERVAL_SECONDS):
            total_bytes = 0
            try:
                for process in (self._process, *self._process.children(recursive=True)):
                    with suppress(psutil.Error):
                        total_bytes += process.memory_info().rss
            except (psutil.Error, OSError):
                continue
            self._peak_bytes = max(self._peak_bytes, total_bytes)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _io_counters(process: psutil.Process) -> tuple[int, int, int, int] | None:
    try:
        counters = process.io_counters()
    except (psutil.Error, OSError):
        return None
    return (
        counters.read_count,
        counters.write_count,
        counters.read_bytes,
        counters.write_bytes,
    )
