"""Service metrics: is it up and how fast, what does it do, what does it use."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from recovery_pipelines.monitoring.application import traffic_source
from recovery_pipelines.monitoring.sample import Counters, Outcome, Sample
from recovery_pipelines.monitoring.system import connect_seconds
from recovery_pipelines.plan.monitoring import Service, ServiceMetrics


class ServiceCollector:
    """Measures every service of the plan."""

    def __init__(self, services: Mapping[str, Service], settings: ServiceMetrics) -> None:
        self._services, self._settings = services, settings
        self._counters = Counters()
        self._sources = {name: traffic_source(service) for name, service in services.items()}
        self.collect()

    def collect(self) -> tuple[list[Sample], list[Outcome]]:
        samples = [
            sample
            for name, service in self._services.items()
            for part in (self._availability, self._performance, self._resources)
            for sample in part(name, service)
        ]
        return samples, []

    def _availability(self, name: str, service: Service) -> Iterator[Sample]:
        if "uptime" in self._settings.availability:
            uptime = None
            if service.pid_file:
                process = service_process(service.pid_file)
                # A service that does not run has been up for no time at all.
                uptime = max(0.0, time.time() - process.create_time()) if process else 0.0
            yield Sample("availability.uptime", name, uptime)
        if "response_time" in self._settings.availability:
            seconds = connect_seconds(f"{service.host}:{service.service_port}")
            yield Sample("availability.response_time", name, seconds)

    def _performance(self, name: str, service: Service) -> Iterator[Sample]:
        if not self._settings.performance:
            return
        traffic = self._sources[name].since_last_look()
        if "throughput" in self._settings.performance:
            yield Sample("performance.throughput", name, traffic.requests_per_second)
        if "error_rate" in self._settings.performance:
            yield Sample("performance.error_rate", name, traffic.error_rate)

    def _resources(self, name: str, service: Service) -> Iterator[Sample]:
        tree = process_tree(service.pid_file) if service.pid_file else None
        if "cpu_usage" in self._settings.resources:
            spent = self._counters.rate(
                ("cpu", name), sum(map(_cpu_seconds, tree)) if tree else None
            )
            yield Sample("resources.cpu_usage", name, None if spent is None else 100 * spent)
        if "memory_usage" in self._settings.resources:
            memory = float(sum(map(_memory_bytes, tree))) if tree else None
            yield Sample("resources.memory_usage", name, memory)


def service_process(pid_file: Path) -> psutil.Process | None:
    """The running process that the first line of a pid file names."""
    try:
        process = psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))
        return process if process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, psutil.Error):
        return None


def process_tree(pid_file: Path) -> list[psutil.Process] | None:
    """The service's process and all its descendants; None if it does not run."""
    process = service_process(pid_file)
    try:
        return [process, *process.children(recursive=True)] if process else None
    except psutil.Error:
        return None


def _cpu_seconds(process: psutil.Process) -> float:
    """Including that of children which have ended, so that the tree's sum only grows."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def _memory_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
