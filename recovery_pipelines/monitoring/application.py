"""Application metrics: response times, error rates and throughput.

Three sources: a Prometheus endpoint, an access log, or, with neither, our own probes.
"""

import http.client
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from recovery_pipelines.monitoring.exposition import Point, read_exposition
from recovery_pipelines.monitoring.health import http_get
from recovery_pipelines.monitoring.sample import Counters, Outcome, Sample
from recovery_pipelines.monitoring.sketch import Sketch, bucket, quantile, sketch_of
from recovery_pipelines.plan.monitoring import ApplicationMetrics, Prometheus, Service

_SCRAPE_TIMEOUT_SECONDS = 5.0
_SCRAPE_BYTES = 16 << 20
_LOG_BYTES = 64 << 20
_PARTS = 32
"""Into how many equal parts a histogram's bucket is spread."""


@dataclass(frozen=True)
class Traffic:
    """What an application did since the look before. None is missing, not zero."""

    seconds: float | None = None
    requests: float | None = None
    errors_by_status: Mapping[str, float] | None = None
    """Requests that ended in a status of 400 or above."""
    sent_bytes: float | None = None
    response_seconds: Sketch = field(default_factory=dict)
    mean_response_seconds: float | None = None

    @property
    def requests_per_second(self) -> float | None:
        return self._per_second(self.requests)

    @property
    def bytes_per_second(self) -> float | None:
        return self._per_second(self.sent_bytes)

    @property
    def error_rate(self) -> float | None:
        """Failed requests as a share of all; None if there was none."""
        if self.errors_by_status is None or not self.requests:
            return None
        return sum(self.errors_by_status.values()) / self.requests

    def _per_second(self, count: float | None) -> float | None:
        return None if count is None or not self.seconds else count / self.seconds


class TrafficSource(Protocol):
    """One way to learn what an application does."""

    def since_last_look(self) -> Traffic:
        """The first look yields nothing."""


class ApplicationCollector:
    """Measures every service of the plan."""

    def __init__(self, services: Mapping[str, Service], settings: ApplicationMetrics) -> None:
        self._settings = settings
        self._sources = {name: traffic_source(service) for name, service in services.items()}
        self._errors_seen: dict[str, set[str]] = {name: set() for name in services}
        self.collect()

    def collect(self) -> tuple[list[Sample], list[Outcome]]:
        return [
            sample
            for name, source in self._sources.items()
            for sample in _samples(
                name, source.since_last_look(), self._settings, self._errors_seen[name]
            )
        ], []


def traffic_source(service: Service) -> TrafficSource:
    """The source that the plan names for a service."""
    if service.prometheus:
        return PrometheusSource(service, service.prometheus)
    return AccessLogSource(service.access_log) if service.access_log else ProbeSource(service)


def _samples(
    name: str, traffic: Traffic, settings: ApplicationMetrics, errors_seen: set[str]
) -> Iterator[Sample]:
    sketch = traffic.response_seconds
    if settings.response_times and sketch:
        yield Sample("response_times", name, traffic.mean_response_seconds, sketch)
    for statistic in settings.response_times:
        value = (
            traffic.mean_response_seconds
            if statistic == "avg"
            else quantile(sketch, int(statistic[1:]) / 100)
        )
        yield Sample(f"response_times.{statistic}", name, value)
    if "total" in settings.error_rates:
        yield Sample("error_rates.total", name, traffic.error_rate)
    if "by_type" in settings.error_rates and traffic.requests:
        errors = traffic.errors_by_status or {}
        errors_seen.update(errors)
        # A kind of error that was seen once is zero from then on, not missing.
        for status in sorted(errors_seen) if traffic.errors_by_status is not None else ():
            rate = errors.get(status, 0.0) / traffic.requests
            yield Sample("error_rates.by_type", f"{name} {status}", rate)
    if "requests_per_second" in settings.throughput:
        yield Sample("throughput.requests_per_second", name, traffic.requests_per_second)
    if "data_transfer" in settings.throughput:
        yield Sample("throughput.data_transfer", name, traffic.bytes_per_second)


# --- Prometheus ---------------------------------------------------------------------------


class PrometheusSource:
    """Counters and a histogram that the application counts itself; resets are survived."""

    def __init__(self, service: Service, names: Prometheus) -> None:
        self._service, self._names = service, names
        self._counters = Counters()
        self._looked_at: float | None = None

    def since_last_look(self) -> Traffic:
        points = self._scrape()
        if points is None:
            self._counters, self._looked_at = Counters(), None
            return Traffic()
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        grown = self._growth(points)
        if before is None:
            return Traffic()
        names = self._names
        requests = _total(grown, names.requests)
        by_status: dict[str, float] = {}
        for point in grown:
            status = point.labels.get(names.status_label, "")
            # Some applications count by class, such as 5xx.
            if point.name == names.requests and status[:1] in ("4", "5") and point.value:
                by_status[status] = by_status.get(status, 0) + point.value
        knows_status = any(
            point.name == names.requests and names.status_label in point.labels for point in grown
        )
        count = _total(grown, f"{names.response_times}_count")
        total_seconds = _total(grown, f"{names.response_times}_sum")
        return Traffic(
            seconds=now - before,
            requests=requests,
            errors_by_status=by_status if knows_status else None,
            sent_bytes=_total(grown, names.data_transfer),
            response_seconds=sketch_of_histogram(_buckets(grown, f"{names.response_times}_bucket")),
            mean_response_seconds=total_seconds / count
            if count and total_seconds is not None
            else None,
        )

    def _scrape(self) -> list[Point] | None:
        try:
            status, body = http_get(
                self._service, self._names.endpoint, _SCRAPE_TIMEOUT_SECONDS, _SCRAPE_BYTES
            )
        except (OSError, http.client.HTTPException):
            return None
        return list(read_exposition(body.decode(errors="replace"))) if status == 200 else None

    def _growth(self, points: Iterable[Point]) -> list[Point]:
        """The counters that we use, as what was counted since the look before.

        A series that appears only now has counted from zero since then.
        """
        names = self._names
        used = {
            names.requests,
            names.data_transfer,
            *(f"{names.response_times}_{part}" for part in ("bucket", "count", "sum")),
        }
        grown = []
        for point in points:
            if point.name in used and math.isfinite(point.value):
                key = (point.name, tuple(sorted(point.labels.items())))
                increase = self._counters.increase(key, point.value)
                amount = increase[0] if increase else point.value
                grown.append(point._replace(value=amount))
        return grown


def _buckets(points: Iterable[Point], name: str) -> Iterator[tuple[float, float]]:
    """Upper bound and count; a series without a bound that is a number is left out."""
    for point in points:
        if point.name == name:
            with suppress(ValueError, KeyError):
                bound = float(point.labels["le"])
                if not math.isnan(bound):
                    yield bound, point.value


def _total(points: Iterable[Point], name: str) -> float | None:
    values = [point.value for point in points if point.name == name]
    return sum(values) if values else None


def sketch_of_histogram(buckets: Iterable[tuple[float, float]]) -> Sketch:
    """The sketch of a Prometheus histogram: pairs of upper bound and cumulative count.

    Several series of the same bounds are added up. Inside a bucket values are taken to lie
    evenly, as Prometheus's own histogram_quantile does; so a quantile is off by at most the width
    of its bucket. Values above the last finite bound count as infinite: nobody knows them.
    """
    cumulative: dict[float, float] = {}
    for bound, count in buckets:
        cumulative[bound] = cumulative.get(bound, 0) + count
    sketch: Sketch = {}
    low, below = min(0.0, *cumulative) if cumulative else 0.0, 0.0
    for high in sorted(cumulative):
        inside = cumulative[high] - below
        parts = 1 if math.isinf(high) else _PARTS
        for part in range(parts if inside > 0 else 0):
            value = high if math.isinf(high) else low + (high - low) * (part + 0.5) / parts
            key = bucket(value)
            sketch[key] = sketch.get(key, 0) + inside / parts
        low, below = high, cumulative[high]
    return sketch


# --- access log ---------------------------------------------------------------------------

_LOG_LINE = re.compile(
    rb'^\S+ \S+ .*?\[[^\]]+\] "(?:[^"\\]|\\.)*" (\d{3}) (\d{1,18}|-)'
    rb'(?: "(?:[^"\\]|\\.)*" "(?:[^"\\]|\\.)*")?(?: (\d{1,18}(?:\.\d+)?))?\s*$'
)


class AccessLogSource:
    """Reads what was appended since the look before; a rotated log is read to its end first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._rest = b""
        self._looked_at: float | None = None

    def since_last_look(self) -> Traffic:
        now, before = time.monotonic(), self._looked_at
        if self._file is None:
            if not self._open(at_end=before is None):
                self._looked_at = None
                return Traffic()
            if before is None:
                self._looked_at = now
                return Traffic()
        self._looked_at = now
        lines = self._read()
        matches = [match for line in lines if (match := _LOG_LINE.match(line))]
        if lines and not matches:
            return Traffic()  # it is not a log that we can read
        times = [float(match[3]) for match in matches if match[3]]
        errors: dict[str, float] = {}
        for match in matches:
            if match[1] >= b"400":
                status = match[1].decode()
                errors[status] = errors.get(status, 0) + 1
        return Traffic(
            seconds=now - before if before is not None else None,
            requests=float(len(matches)),
            errors_by_status=errors,
            sent_bytes=float(sum(int(match[2]) for match in matches if match[2] != b"-")),
            response_seconds=sketch_of(times),
            mean_response_seconds=sum(times) / len(times) if times else None,
        )

    def _open(self, *, at_end: bool) -> bool:
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return False
        os.lseek(self._file, 0, os.SEEK_END if at_end else os.SEEK_SET)
        self._rest = b""
        return True

    def _read(self) -> list[bytes]:
        """Whole lines, first of the file that is open, then of the one that took its name."""
        lines = self._drain()
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return lines  # rotated, the new one is not there yet
        assert self._file is not None
        opened = os.fstat(self._file)
        if (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino):
            lines += self._drain()
            os.close(self._file)
            self._file = None
            if self._open(at_end=False):
                lines += self._drain()
        elif now.st_size < os.lseek(self._file, 0, os.SEEK_CUR):  # copied and truncated
            os.lseek(self._file, 0, os.SEEK_SET)
            self._rest = b""
            lines += self._drain()
        return lines

    def _drain(self) -> list[bytes]:
        assert self._file is not None
        data, left = [self._rest], _LOG_BYTES
        while left > 0 and (block := os.read(self._file, min(left, 1 << 20))):
            data.append(block)
            left -= len(block)
        *lines, self._rest = b"".join(data).split(b"\n")
        return lines


# --- probes -------------------------------------------------------------------------------


class ProbeSource:
    """One request of our own at each look. What others ask for stays unknown."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._first = True

    def since_last_look(self) -> Traffic:
        if self._first:
            self._first = False
            return Traffic()
        began = time.monotonic()
        try:
            status, _ = http_get(self._service, "/", _SCRAPE_TIMEOUT_SECONDS, 1 << 16)
        except (OSError, http.client.HTTPException):
            return Traffic(requests=1.0, errors_by_status={"no answer": 1.0})
        seconds = time.monotonic() - began
        return Traffic(
            requests=1.0,
            errors_by_status={str(status): 1.0} if status >= 500 else {},
            response_seconds=sketch_of([seconds]),
            mean_response_seconds=seconds,
        )
