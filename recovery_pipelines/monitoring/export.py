"""The newest measurements in the OpenMetrics format, for Prometheus and what reads it."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric, StateSetMetricFamily
from prometheus_client.registry import Collector

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.monitoring.history import newest_outcomes, newest_samples, newest_ticks
from recovery_pipelines.monitoring.sample import State
from recovery_pipelines.monitoring.status import blind_sections
from recovery_pipelines.plan.monitoring import METRIC_UNITS, SECTIONS, Monitoring

_STATES = get_args(State)


class _Newest(Collector):
    """Reads the store at each scrape. What is too old, or missing, is not shown at all."""

    def __init__(self, home: Path, monitoring: Monitoring) -> None:
        self._home = home
        self._monitoring = monitoring

    def collect(self) -> Iterator[Metric]:
        newest = newest_ticks(self._home)
        blind = blind_sections(newest, self._monitoring, time.time())
        yield from _sections(blind, newest)
        shown = newest_samples(self._home).dropna(subset=["value"])
        shown = shown[~shown["section"].isin(blind)]
        for metric, rows in shown.groupby("metric"):
            yield _gauge(str(metric), dict(zip(rows["entity"], rows["value"], strict=True)))
        outcomes = newest_outcomes(self._home)
        checks = StateSetMetricFamily(
            "recovery_health_check", "The newest outcome of a health check", labels=["check"]
        )
        outcomes = outcomes[~outcomes["section"].isin(blind)]
        for name, found in zip(outcomes["name"], map(str, outcomes["state"]), strict=True):
            checks.add_metric([name], {state: found == state for state in _STATES})
        yield checks


def serve(home: Path, monitoring: Monitoring, address: str, port: int) -> int:
    """Serve `/metrics` in threads of its own; returns the port. Raises RecoveryError if taken."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Newest(home, monitoring))
    try:
        server, _ = start_http_server(port, address, registry)
    except OSError as error:
        raise RecoveryError(f"cannot serve on {address}:{port}: {error.strerror}") from None
    return int(server.server_port)


def _sections(blind: list[str], newest: dict[str, float]) -> Iterator[Metric]:
    unseen = GaugeMetricFamily(
        "recovery_section_blind", "1: its newest measurement is too old", labels=["section"]
    )
    measured = GaugeMetricFamily(
        "recovery_section_measured_timestamp_seconds",
        "When a section was measured last",
        labels=["section"],
    )
    for section in SECTIONS:
        unseen.add_metric([section], section in blind)
        if section in newest:
            measured.add_metric([section], newest[section])
    yield from (unseen, measured)


def _gauge(metric: str, values: dict[str, float]) -> Metric:
    unit = METRIC_UNITS[metric]
    name = f"recovery_{re.sub('[^a-z0-9]+', '_', metric)}"
    name = name if name.endswith(unit) else f"{name}_{unit}"
    gauge = GaugeMetricFamily(name, f"{metric}, in {unit}", labels=["entity"])
    for entity, value in values.items():
        gauge.add_metric([entity], value)
    return gauge
