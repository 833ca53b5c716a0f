"""The plan's `monitoring` section: what is measured and checked, how often, how long it is kept.

It mirrors the seed's `monitoring_config`; `services` and `dependencies` say where to look.
"""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from recovery_pipelines.plan.base import Name, Strict

Port = Annotated[int, Field(ge=1, le=65535)]

RETRY_PAUSE_SECONDS = 1.0
"""Between two attempts of a health check."""


def _days(value: object) -> object:
    match = re.fullmatch(r"([1-9]\d{0,3})d", value) if isinstance(value, str) else None
    if not match:
        raise ValueError("give whole days, such as 7d")
    return timedelta(days=int(match[1]))


Days = Annotated[timedelta, BeforeValidator(_days), PlainSerializer(lambda value: f"{value.days}d")]


METRIC_UNITS = {
    "cpu.usage": "percent",
    "cpu.load": "processes",
    "cpu.temperature": "celsius",
    "memory.usage": "percent",
    "memory.swap": "percent",
    "memory.cache": "bytes",
    "disk.usage": "percent",
    "disk.io": "bytes_per_second",
    "disk.latency": "seconds",
    "network.throughput": "bytes_per_second",
    "network.latency": "seconds",
    "network.errors": "per_second",
    "collector.cpu": "percent",
    "collector.memory": "bytes",
    "availability.uptime": "seconds",
    "availability.response_time": "seconds",
    "performance.throughput": "requests_per_second",
    "performance.error_rate": "ratio",
    "resources.cpu_usage": "percent",
    "resources.memory_usage": "bytes",
    "response_times": "seconds",
    "response_times.avg": "seconds",
    "response_times.p95": "seconds",
    "response_times.p99": "seconds",
    "error_rates.total": "ratio",
    "error_rates.by_type": "ratio",
    "throughput.requests_per_second": "requests_per_second",
    "throughput.data_transfer": "bytes_per_second",
    "health.ok": "ratio",
    "health.response_time": "seconds",
    "health.replication_lag": "seconds",
}
"""Every metric, by the seed's names, and its unit."""


class Resources(Strict):
    """What is measured of the host."""

    cpu: tuple[Literal["usage", "load", "temperature"], ...] = ("usage", "load", "temperature")
    memory: tuple[Literal["usage", "swap", "cache"], ...] = ("usage", "swap", "cache")
    disk: tuple[Literal["usage", "io", "latency"], ...] = ("usage", "io", "latency")
    network: tuple[Literal["throughput", "latency", "errors"], ...] = (
        "throughput",
        "latency",
        "errors",
    )


class Retention(Strict):
    raw_data: Days = timedelta(days=7)
    """Of all sections; whole days."""
    aggregated: Days = timedelta(days=90)
    """Of the 5-minute aggregates; whole days."""

    @model_validator(mode="after")
    def _aggregates_outlive_raw_data(self) -> Self:
        if self.aggregated < self.raw_data:
            raise ValueError("`aggregated` must not be shorter than `raw_data`")
        return self


class SystemMetrics(Strict):
    resources: Resources = Resources()
    collection_interval: PositiveInt = 60
    """Seconds."""
    latency_probe: str | None = None
    """`host:port` whose TCP connect time is `network.latency`; without it, that is missing."""
    retention: Retention = Retention()

    @field_validator("latency_probe")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\S+:\d{1,5}", value):
            raise ValueError("give host:port")
        return value


class ServiceMetrics(Strict):
    availability: tuple[Literal["uptime", "response_time"], ...] = ("uptime", "response_time")
    performance: tuple[Literal["throughput", "error_rate"], ...] = ("throughput", "error_rate")
    resources: tuple[Literal["cpu_usage", "memory_usage"], ...] = ("cpu_usage", "memory_usage")
    collection_interval: PositiveInt = 30
    """Seconds."""


class ApplicationMetrics(Strict):
    response_times: tuple[Literal["avg", "p95", "p99"], ...] = ("avg", "p95", "p99")
    error_rates: tuple[Literal["total", "by_type"], ...] = ("total", "by_type")
    throughput: tuple[Literal["requests_per_second", "data_transfer"], ...] = (
        "requests_per_second",
        "data_transfer",
    )
    collection_interval: PositiveInt = 15
    """Seconds."""


class MetricsCollection(Strict):
    system_metrics: SystemMetrics = SystemMetrics()
    service_metrics: ServiceMetrics = ServiceMetrics()
    application_metrics: ApplicationMetrics = ApplicationMetrics()


class ServiceCheck(Strict):
    """One check that every service has to pass."""

    type: Literal["http", "tcp"]
    """How it is asked."""
    endpoint: str | None = None
    """http: the path that is asked for."""
    expected_status: Annotated[int, Field(ge=100, le=599)] | None = None
    """http: the only right answer; 200 if left out. Redirects are not followed."""
    port: Port | Literal["service_port"] | None = None
    """tcp: a number, or `service_port` for the port that each service names."""
    timeout: PositiveFloat | None = None
    """Seconds for one attempt; that of all checks if left out."""

    @model_validator(mode="after")
    def _keys_of_its_type(self) -> Self:
        if self.type == "http" and (self.endpoint is None or self.port is not None):
            raise ValueError("a check of type http has `endpoint` and no `port`")
        if self.type == "tcp" and (
            self.port is None or self.endpoint is not None or self.expected_status is not None
        ):
            raise ValueError("a check of type tcp has `port`, no `endpoint`, no `expected_status`")
        return self

    @property
    def label(self) -> str:
        return f"{self.type} {self.endpoint or self.port}"


class ServiceChecks(Strict):
    interval: PositiveInt = 60
    """Seconds."""
    timeout: PositiveFloat = 10
    """Seconds for one attempt."""
    retries: Annotated[int, Field(ge=0, le=10)] = 3
    """Further attempts after a failed one, a second apart."""
    checks: tuple[ServiceCheck, ...] = (
        ServiceCheck(type="http", endpoint="/health", expected_status=200),
        ServiceCheck(type="tcp", port="service_port", timeout=5),
    )

    @model_validator(mode="after")
    def _attempts_fit_into_the_interval(self) -> Self:
        longest = max([check.timeout or self.timeout for check in self.checks], default=0)
        needed = longest * (self.retries + 1) + self.retries * RETRY_PAUSE_SECONDS
        if needed >= self.interval:
            raise ValueError(
                f"{self.retries + 1} attempts of {longest:g} s take up to {needed:g} s, which does "
                f"not fit into the interval of {self.interval} s: lower `timeout` or `retries`"
            )
        return self


class DependencyChecks(Strict):
    interval: PositiveInt = 120
    """Seconds."""
    services: tuple[Literal["database", "cache", "storage"], ...] = (
        "database",
        "cache",
        "storage",
    )
    """One that `dependencies` gives no address is shown as not checked, never as healthy."""
    checks: tuple[Literal["connectivity", "performance", "replication"], ...] = (
        "connectivity",
        "performance",
        "replication",
    )


class HealthChecks(Strict):
    service_checks: ServiceChecks = ServiceChecks()
    dependency_checks: DependencyChecks = DependencyChecks()


class Prometheus(Strict):
    """Where an application's metrics are, and what it calls them."""

    endpoint: str = "/metrics"
    """The path of its metrics."""
    response_times: str = "http_request_duration_seconds"
    """A histogram, in seconds."""
    requests: str = "http_requests_total"
    """A counter by status."""
    status_label: str = "status"
    """The label of that counter."""
    data_transfer: str = "http_response_size_bytes_sum"
    """A counter of bytes."""


class Service(Strict):
    """A service that is watched."""

    host: str = "127.0.0.1"
    """Where it listens."""
    service_port: Port
    """Where it listens."""
    tls: bool = False
    """Whether it is asked by https."""
    pid_file: Path | None = None
    """Its first line is the process whose tree is measured; without it, that is missing."""
    prometheus: Prometheus | None = None
    access_log: Path | None = None
    """Instead of `prometheus`: in common or combined format; the request time in seconds may follow
    as the last field."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.prometheus and self.access_log:
            raise ValueError("give `prometheus` or `access_log`, not both")
        return self


class Dependency(Strict):
    """Where a dependency is, and what it must be able to do."""

    address: str | None = None
    """postgresql://… or redis://…; `env:NAME` keeps one with a password out of the plan.
    storage: s3://bucket or s3://bucket/prefix/."""
    endpoint: str | None = None
    """S3: the server's http(s)://…, where it is not Amazon's."""
    path: Path | None = None
    """storage: a folder that must be writable."""
    slow_seconds: PositiveFloat = 1.0
    """`performance` fails above it."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """How many replicas must be streaming from this server, for `replication`."""
    lag_seconds: PositiveFloat = 30.0
    """`replication` fails above it."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.address is None) == (self.path is None):
            raise ValueError("give either `address` or `path`")
        if self.address and not self.address.startswith("env:"):
            try:
                parts = urlsplit(self.address)
                known = parts.scheme in ("postgresql", "redis", "rediss", "s3")
                secret = bool(parts.password) or "password=" in parts.query
            except ValueError:
                known, secret = False, False
            if not known:
                raise ValueError(
                    "address must be postgresql://…, redis://…, rediss://…, s3://… or env:NAME"
                )
            if secret:
                raise ValueError("an address with a password stands in the environment: env:NAME")
        if self.endpoint is not None:
            if not (self.address or "").startswith("s3://"):
                raise ValueError("`endpoint` belongs to an address s3://…")
            if not re.fullmatch(r"https?://[^@\s]+", self.endpoint):
                raise ValueError("endpoint must be http(s)://host, without a password")
        return self

    @property
    def is_storage(self) -> bool:
        return self.path is not None or (self.address or "").startswith("s3://")


class Monitoring(Strict):
    """Health monitoring of hosts, services and applications."""

    enabled: bool = False
    """Whether the monitoring sensors run from the start; they can be switched in Dagster."""
    notification: tuple[Name, ...] = ()
    """Teams told when health changes, and when monitoring is blind."""
    services: dict[Name, Service] = {}
    dependencies: dict[Literal["database", "cache", "storage"], Dependency] = {}
    limits: dict[str, float] = {}
    """By metric: a value above it is a failure, such as `disk.usage: 90`."""
    metrics_collection: MetricsCollection = MetricsCollection()
    health_checks: HealthChecks = HealthChecks()

    @model_validator(mode="after")
    def _storage_is_storage(self) -> Self:
        for name, dependency in self.dependencies.items():
            if (name == "storage") != dependency.is_storage:
                raise ValueError(
                    f"{name}: storage has a `path` or an address s3://…, database and cache another"
                )
        return self

    @field_validator("limits")
    @classmethod
    def _known_metrics(cls, limits: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(limits) - set(METRIC_UNITS))
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]!r}; known: {', '.join(METRIC_UNITS)}")
        return limits

    def interval_seconds(self, section: str) -> int:
        """How often a section is collected."""
        collected = getattr(self.metrics_collection, section, None)
        if collected is not None:
            return int(collected.collection_interval)
        return int(getattr(self.health_checks, section).interval)

    def anchored(self, folder: Path) -> "Monitoring":
        """The same with relative paths below `folder`."""

        def below(path: Path | None) -> Path | None:
            return path and folder / path.expanduser()

        services = {
            name: service.model_copy(
                update={
                    "pid_file": below(service.pid_file),
                    "access_log": below(service.access_log),
                }
            )
            for name, service in self.services.items()
        }
        dependencies = {
            name: dependency.model_copy(update={"path": below(dependency.path)})
            for name, dependency in self.dependencies.items()
        }
        return self.model_copy(update={"services": services, "dependencies": dependencies})


SECTIONS = (
    "system_metrics",
    "service_metrics",
    "application_metrics",
    "service_checks",
    "dependency_checks",
)
"""What is collected, each at its own interval."""
