"""System metrics: processors, memory, disks and networks of this host."""

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import psutil

from recovery_pipelines.monitoring.sample import Counters, Outcome, Sample
from recovery_pipelines.plan.monitoring import SystemMetrics

_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")
_PROBE_TIMEOUT_SECONDS = 5.0


class SystemCollector:
    """Measures what the plan names. Rates are over the time since the look before."""

    def __init__(self, settings: SystemMetrics) -> None:
        self._settings = settings
        self._counters = Counters()
        self._self = psutil.Process()
        self.collect()

    def collect(self) -> tuple[list[Sample], list[Outcome]]:
        resources = self._settings.resources
        measures: list[Callable[[], Iterable[Sample]]] = [
            *(getattr(self, f"_cpu_{name}") for name in resources.cpu),
            partial(_memory, resources.memory),
            *(getattr(self, f"_disk_{name}") for name in resources.disk),
            *(getattr(self, f"_network_{name}") for name in resources.network),
            self._own_cost,
        ]
        return [sample for measure in measures for sample in measure()], []

    def _cpu_usage(self) -> Iterator[Sample]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # The kernel counts a guest's time in user and nice already.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle_increase = self._counters.increase("cpu idle", idle)
        all_increase = self._counters.increase("cpu total", total)
        usage = None
        if idle_increase and all_increase and all_increase[0] > 0:
            usage = max(0.0, 100 * (1 - idle_increase[0] / all_increase[0]))
        yield Sample("cpu.usage", "", usage)

    def _cpu_load(self) -> Iterator[Sample]:
        for minutes, load in zip((1, 5, 15), psutil.getloadavg(), strict=True):
            yield Sample("cpu.load", f"{minutes} min", load)

    def _cpu_temperature(self) -> Iterator[Sample]:
        sensors = psutil.sensors_temperatures()
        found = [
            Sample("cpu.temperature", reading.label or chip, reading.current)
            for chip in _CPU_SENSORS
            for reading in sensors.get(chip, ())
        ]
        yield from found or [Sample("cpu.temperature", "", None)]

    def _disk_usage(self) -> Iterator[Sample]:
        mounts = {part.device: part.mountpoint for part in psutil.disk_partitions(all=False)}
        for mount in sorted({"/", *mounts.values()}):
            try:
                # With the reserve for root left out, as df counts.
                yield Sample("disk.usage", mount, psutil.disk_usage(mount).percent)
            except OSError:
                yield Sample("disk.usage", mount, None)

    def _disk_io(self) -> Iterator[Sample]:
        for disk, now in _disks():
            for what in ("read", "write"):
                rate = self._counters.rate(("io", disk, what), getattr(now, f"{what}_bytes"))
                yield Sample("disk.io", f"{disk} {what}", rate)

    def _disk_latency(self) -> Iterator[Sample]:
        for disk, now in _disks():
            spent = self._counters.increase(("ms", disk), now.read_time + now.write_time)
            done = self._counters.increase(("operations", disk), now.read_count + now.write_count)
            # Without an operation there is no latency to tell.
            latency = spent[0] / done[0] / 1000 if spent and done and done[0] else None
            yield Sample("disk.latency", disk, latency)

    def _network_throughput(self) -> Iterator[Sample]:
        for name, now in _interfaces():
            for what, counter in (("received", now.bytes_recv), ("sent", now.bytes_sent)):
                rate = self._counters.rate(("network", name, what), counter)
                yield Sample("network.throughput", f"{name} {what}", rate)

    def _network_errors(self) -> Iterator[Sample]:
        for name, now in _interfaces():
            errors = now.errin + now.errout + now.dropin + now.dropout
            yield Sample("network.errors", name, self._counters.rate(("errors", name), errors))

    def _network_latency(self) -> Iterator[Sample]:
        probe = self._settings.latency_probe
        yield Sample("network.latency", probe or "", connect_seconds(probe) if probe else None)

    def _own_cost(self) -> Iterator[Sample]:
        spent = self._counters.rate("own cpu", time.process_time())
        yield Sample("collector.cpu", "", None if spent is None else 100 * spent)
        yield Sample("collector.memory", "", float(self._self.memory_info().rss))


def connect_seconds(address: str) -> float | None:
    """How long a TCP connection to `host:port` takes to stand; None if it does not come about."""
    host, _, port = address.rpartition(":")
    began = time.monotonic()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PROBE_TIMEOUT_SECONDS):
            return time.monotonic() - began
    except OSError:
        return None


def _memory(wanted: Iterable[str]) -> Iterator[Sample]:
    memory = psutil.virtual_memory()
    for name in wanted:
        if name == "usage":
            yield Sample("memory.usage", "", memory.percent)
        elif name == "cache":
            yield Sample("memory.cache", "", getattr(memory, "cached", None))
        else:
            swap = psutil.swap_memory()
            # A host without swap uses none of nothing: that is not 0 %.
            yield Sample("memory.swap", "", swap.percent if swap.total else None)


def _disks() -> Iterator[tuple[str, "psutil._ntp.sdiskio"]]:
    """Whole disks that did anything since boot."""
    for name, counters in sorted((psutil.disk_io_counters(perdisk=True) or {}).items()):
        is_partition = Path(f"/sys/class/block/{name}/partition").exists()
        if not is_partition and counters.read_count + counters.write_count:
            yield name, counters


def _interfaces() -> Iterator[tuple[str, "psutil._ntp.snetio"]]:
    for name, counters in sorted(psutil.net_io_counters(pernic=True).items()):
        if name != "lo":
            yield name, counters
